"""kill -9 of the node agent at every step: nothing leaks, and no running sandbox ends."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firebrick.model.ids import SandboxId, SnapshotId, new_snapshot_id
from firebrick.node.supervisor import NodeAgent
from firebrick.rpc.node_api import NodeSandboxState, PauseSandbox
from tests.sim.node.world import Crashed, Steps, World, request, until_dead
from tests.support.wait import wait_for

MOST_STEPS = 80


async def ready_agent(world: World, steps: Steps) -> NodeAgent:
    agent = world.build(steps)
    await agent.open()
    if world.settings.warm_count:
        await wait_for(lambda: is_warm(agent, world.settings.warm_count))
    return agent


async def is_warm(agent: NodeAgent, count: int) -> bool:
    return (await agent.describe()).warm_count == count


@pytest.mark.parametrize("warm_count", [0, 1])
async def test_a_start_killed_at_any_step_leaks_nothing_and_harms_no_neighbour(tmp_path: Path, warm_count: int) -> None:
    """After a restart only sandboxes that were answered for run, and the start can be repeated."""
    for crash_at in range(1, MOST_STEPS):
        world = World(tmp_path / str(crash_at))
        steps = Steps()
        world.keep_warm(warm_count)
        agent = await ready_agent(world, steps)
        neighbour = await agent.start_sandbox(request())
        await world.assert_owned(agent)
        steps.crash_at = len(steps.passed) + crash_at
        wanted = request()
        if not await until_dead(steps, agent.start_sandbox(wanted)):
            await agent.close()
            break
        world.keep_warm(0)
        async with world.agent() as reborn:
            assert neighbour in await reborn.list_sandboxes()
            await world.assert_owned(reborn)
            again = await reborn.start_sandbox(wanted)
            assert await reborn.start_sandbox(wanted) == again
            assert await reborn.kill_sandbox(wanted.sandbox_id)
            assert await reborn.kill_sandbox(neighbour.sandbox_id)
            await world.assert_empty()
    assert 10 < crash_at < MOST_STEPS - 1


async def kill(agent: NodeAgent, victim: SandboxId, world: World, acknowledged: list[bool]) -> None:
    acknowledged.append(await agent.kill_sandbox(victim))
    await world.assert_owned(agent)


async def test_a_kill_killed_at_any_step_is_final_after_the_restart(tmp_path: Path) -> None:
    """A kill that was cut off can be repeated and leaves nothing; one that was acknowledged stays a kill."""
    for crash_at in range(1, MOST_STEPS):
        world = World(tmp_path / str(crash_at))
        steps = Steps()
        agent = await ready_agent(world, steps)
        neighbour = await agent.start_sandbox(request())
        victim = await agent.start_sandbox(request())
        steps.crash_at = len(steps.passed) + crash_at
        acknowledged: list[bool] = []
        if not await until_dead(steps, kill(agent, victim.sandbox_id, world, acknowledged)):
            await agent.close()
            break
        async with world.agent() as reborn:
            listed = await reborn.list_sandboxes()
            assert neighbour in listed
            assert victim not in listed or not acknowledged
            await reborn.kill_sandbox(victim.sandbox_id)
            await world.assert_owned(reborn)
            await reborn.kill_sandbox(neighbour.sandbox_id)
            await world.assert_empty()
    assert 5 < crash_at < MOST_STEPS - 1


async def test_a_restart_killed_at_any_step_is_finished_by_the_next(tmp_path: Path) -> None:
    """Recovery itself may be killed: the one after it finds the same."""
    for crash_at in range(1, MOST_STEPS):
        world = World(tmp_path / str(crash_at))
        first = Steps()
        agent = await ready_agent(world, first)
        kept = await agent.start_sandbox(request())
        first.crash_at = len(first.passed) + 9
        await until_dead(first, agent.start_sandbox(request()))
        assert first.is_dead
        second = Steps(crash_at=crash_at)
        reborn = world.build(second)
        if not await until_dead(second, reborn.open()):
            await reborn.close()
            break
        async with world.agent() as third:
            assert await third.list_sandboxes() == (kept,)
            await world.assert_owned(third)
            await third.kill_sandbox(kept.sandbox_id)
            await world.assert_empty()
    assert 2 < crash_at < MOST_STEPS - 1


Work = Callable[[NodeAgent, SandboxId, SnapshotId], Coroutine[Any, Any, object]]


async def pause(agent: NodeAgent, sandbox_id: SandboxId, _: SnapshotId) -> None:
    await agent.pause_sandbox(PauseSandbox(sandbox_id=sandbox_id, keep_memory=True))


async def leave(agent: NodeAgent, sandbox_id: SandboxId, _: SnapshotId) -> None:
    await agent.pause_sandbox(PauseSandbox(sandbox_id=sandbox_id, keep_memory=False))


async def resume(agent: NodeAgent, sandbox_id: SandboxId, _: SnapshotId) -> None:
    await agent.resume_sandbox(request(sandbox_id))


async def bin_it(agent: NodeAgent, sandbox_id: SandboxId, _: SnapshotId) -> None:
    await agent.kill_sandbox(sandbox_id, keep_disk=True)


async def save(agent: NodeAgent, sandbox_id: SandboxId, snapshot_id: SnapshotId) -> None:
    await agent.snapshot_sandbox(sandbox_id, snapshot_id, keep_memory=False)


async def fork(agent: NodeAgent, sandbox_id: SandboxId, snapshot_id: SnapshotId) -> None:
    await save(agent, sandbox_id, snapshot_id)
    child = await agent.start_sandbox(replace(request(), snapshot_id=snapshot_id))
    await agent.kill_sandbox(child.sandbox_id)
    await agent.delete_snapshot(snapshot_id)


async def is_saved(agent: NodeAgent, sandbox_id: SandboxId) -> bool:
    (listed,) = [found for found in await agent.list_sandboxes() if found.sandbox_id == sandbox_id]
    return not listed.address


async def rest_long(agent: NodeAgent, sandbox_id: SandboxId, snapshot_id: SnapshotId) -> None:
    await pause(agent, sandbox_id, snapshot_id)
    await wait_for(lambda: is_saved(agent, sandbox_id))


async def fork_memory(agent: NodeAgent, sandbox_id: SandboxId, snapshot_id: SnapshotId) -> None:
    assert (await agent.snapshot_sandbox(sandbox_id, snapshot_id, keep_memory=True)).keeps_memory
    child = await agent.start_sandbox(replace(request(), snapshot_id=snapshot_id))
    assert child.kept_memory
    await agent.kill_sandbox(child.sandbox_id)
    await agent.delete_snapshot(snapshot_id)


async def has_closed(agent: NodeAgent) -> bool:
    """False when it died on the way: what goes on behind an answer may come to the fatal step only then."""
    try:
        await agent.close()
    except Crashed:
        return False
    return True


@pytest.mark.parametrize("inside", [False, True], ids=["disk on the host", "disk inside"])
@pytest.mark.parametrize(
    ("before", "work"),
    [
        ((), pause), ((), leave), ((), bin_it), ((), save), ((), fork), ((pause,), resume), ((leave,), resume),
        ((pause,), leave), ((pause,), save), ((leave,), fork),
    ],
    ids=lambda work: work.__name__ if callable(work) else "+".join(step.__name__ for step in work) or "running",
)  # fmt: skip
@pytest.mark.parametrize("reboots", [False, True], ids=["restart", "reboot"])
async def test_rest_killed_at_any_step_loses_no_disk(
    tmp_path: Path, before: tuple[Work, ...], work: Work, inside: bool, reboots: bool
) -> None:
    """kill -9 within pause, resume, snapshot or fork, then a restart or a reboot: a sandbox that rested comes back with
    its disk, also if it was only about to rest; one that ran runs on, unless its host went down."""
    for crash_at in range(1, MOST_STEPS):
        world = World(tmp_path / str(crash_at))
        if inside:
            world.keep_writes_inside()
        steps, snapshot_id = Steps(), new_snapshot_id()
        agent = await ready_agent(world, steps)
        started = await agent.start_sandbox(request())
        world.write_inside(started, "41")
        for step in before:
            await step(agent, started.sandbox_id, snapshot_id)
        steps.crash_at = len(steps.passed) + crash_at
        if not await until_dead(steps, work(agent, started.sandbox_id, snapshot_id)) and await has_closed(agent):
            break
        if reboots:
            world.reboot()
        async with world.agent() as reborn:
            await world.assert_owned(reborn)
            listed = {sandbox.sandbox_id: sandbox for sandbox in await reborn.list_sandboxes()}
            may_be_lost = reboots and (not before or work is resume)
            if (found := listed.pop(started.sandbox_id, None)) is not None:
                again = await reborn.resume_sandbox(request(started.sandbox_id))
                assert world.read_inside(again) == "41"
                assert found.state is not NodeSandboxState.RUNNING or again == found
                assert await reborn.kill_sandbox(started.sandbox_id)
            else:
                assert may_be_lost
            for child in listed:
                await reborn.kill_sandbox(child)
            await reborn.delete_snapshot(snapshot_id)
            assert await reborn.list_snapshots() == ()
            await world.assert_empty()
    assert crash_at < MOST_STEPS - 1


@pytest.mark.parametrize(
    ("before", "work"),
    [
        ((), pause), ((), rest_long), ((), fork_memory), ((pause,), rest_long), ((pause,), resume),
        ((pause,), fork_memory), ((rest_long,), resume), ((rest_long,), leave), ((rest_long,), fork_memory),
    ],
    ids=lambda work: work.__name__ if callable(work) else "+".join(step.__name__ for step in work) or "running",
)  # fmt: skip
@pytest.mark.parametrize("reboots", [False, True], ids=["restart", "reboot"])
async def test_memory_killed_at_any_step_is_never_lost_with_its_disk_and_never_runs_twice(
    tmp_path: Path, before: tuple[Work, ...], work: Work, reboots: bool
) -> None:
    """kill -9 while memory is saved, gone on from, given up or forked. After a restart the sandbox runs or is paused,
    with its memory unless that was to be given up; a reboot costs the memory at most of what was not saved yet, and
    what ran. The disk is there in every case, and one machine at most."""
    for crash_at in range(1, MOST_STEPS):
        world = World(tmp_path / str(crash_at))
        world.keep_memory_in_files()
        world.settings = replace(world.settings, reclaim_after_s=1.0)
        steps, snapshot_id = Steps(), new_snapshot_id()
        agent = await ready_agent(world, steps)
        started = await agent.start_sandbox(request())
        world.write_inside(started, "41")
        world.guest(started).memory["counter"] = "7"
        for step in before:
            await step(agent, started.sandbox_id, snapshot_id)
        steps.crash_at = len(steps.passed) + crash_at
        if not await until_dead(steps, work(agent, started.sandbox_id, snapshot_id)) and await has_closed(agent):
            break
        if reboots:
            world.reboot()
        async with world.agent() as reborn:
            await world.assert_owned(reborn)
            listed = {sandbox.sandbox_id: sandbox for sandbox in await reborn.list_sandboxes()}
            found = listed.pop(started.sandbox_id, None)
            assert found is not None or (reboots and (not before or work is resume))
            if found is not None:
                again = await reborn.resume_sandbox(request(started.sandbox_id))
                assert world.read_inside(again) == "41"
                has_memory = world.guest(again).memory == {"counter": "7"}
                is_running = found.state is NodeSandboxState.RUNNING
                assert has_memory == (is_running or found.keeps_memory) == (is_running or again.kept_memory)
                assert has_memory or reboots or work is leave
                if rest_long in before and work is not leave:
                    assert has_memory
                assert len(world.runtime.machines) == 1 + len(listed)
                assert await reborn.kill_sandbox(started.sandbox_id)
            for child in listed:
                await reborn.kill_sandbox(child)
            await reborn.delete_snapshot(snapshot_id)
            assert await reborn.list_snapshots() == ()
            await world.assert_empty()
    assert crash_at < MOST_STEPS - 1


@pytest.mark.parametrize("warm_count", [0, 1])
async def test_a_step_that_fails_fails_the_start_or_nothing(tmp_path: Path, warm_count: int) -> None:
    """Whatever one step's failure does to a start, what it made is gone or runs; a warm machine is replaced."""
    for fail_at in range(1, MOST_STEPS):
        world = World(tmp_path / str(fail_at))
        steps = Steps()
        world.keep_warm(warm_count)
        agent = await ready_agent(world, steps)
        world.keep_warm(0)
        wanted = request()
        steps.fail_at = len(steps.passed) + fail_at
        failed = None
        try:
            await agent.start_sandbox(wanted)
        except Exception as exc:  # noqa: BLE001 - any failure is allowed here, a leak is not
            failed = exc
        await wait_for(lambda agent=agent, world=world: is_settled(agent, world))
        has_run_out = steps.fail_at > len(steps.passed)
        listed = await agent.list_sandboxes()
        assert (failed is None) == (len(listed) == 1)
        assert warm_count == 0 or failed is None
        await agent.kill_sandbox(wanted.sandbox_id)
        await wait_for(lambda agent=agent, world=world: is_settled(agent, world))
        await agent.close()
        if has_run_out:
            break
    assert 4 < fail_at < MOST_STEPS - 1


async def is_settled(agent: NodeAgent, world: World) -> bool:
    try:
        await world.assert_owned(agent)
    except AssertionError:
        return False
    return True
