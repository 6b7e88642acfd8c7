"""The life of a paused sandbox under a real control plane: pause, resume, expiry, idleness, reboot, grace bin."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import update

from firebrick.catalog.base import RouteState
from firebrick.model.errors import Forbidden, Internal, LimitExceeded, NoCapacity, NotFound, WrongState
from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.machine import ExitCause
from firebrick.model.sandbox import EndReason, OnTimeout, Sandbox, SandboxState
from firebrick.rpc.node_api import NodeSandboxState
from firebrick.store.events import event_list
from firebrick.store.quotas import team_use
from firebrick.store.schema import teams
from firebrick.store.teams import team_fetch
from tests.support.control import LIMITS, Running, World, run_control
from tests.support.wait import wait_for


async def pause(running: Running, sandbox: Sandbox, *, keep_memory: bool = True) -> Sandbox:
    return await running.control.pausing.pause(running.team.team_id, sandbox.sandbox_id, keep_memory=keep_memory)


async def connect(
    running: Running, sandbox: Sandbox, timeout_s: int | None = None, *, keep_memory: bool = True
) -> tuple[Sandbox, bool]:
    return await running.control.pausing.connect(
        running.team, sandbox.sandbox_id, timeout_s, default_s=300, keep_memory=keep_memory
    )


async def wait_state(running: Running, sandbox_id: SandboxId, state: SandboxState, *, turn_s: float = 0) -> Sandbox:
    async def is_there() -> bool:
        running.world.clock.advance(turn_s)
        return (await running.row(sandbox_id)).state is state

    await wait_for(is_there, status=lambda: [item.status for item in running.control.reconcilers])
    return await running.row(sandbox_id)


async def test_a_paused_sandbox_keeps_what_it_was(running: Running) -> None:
    """Pause frees CPU, memory and the route and keeps the rest; a resume brings back the same sandbox and token."""
    sandbox = await running.create(metadata={"a": "b"}, env={"X": "1"}, timeout_s=600)
    token = running.control.sandboxes.access_token(sandbox)
    running.world.clock.advance(10)
    paused = await pause(running, sandbox)
    assert (paused.state, paused.keeps_memory) == (SandboxState.PAUSED, True)
    assert paused.paused_at == paused.expires_at == running.world.clock.now()
    assert running.world.catalog.tombstones[sandbox.sandbox_id].reason == "paused"
    await running.assert_consistent()
    running.world.clock.advance(30 * 86_400)
    resumed, is_resumed = await connect(running, sandbox)
    assert is_resumed
    assert (resumed.metadata, resumed.env, resumed.started_at) == (
        {"a": "b"}, {"X": "1"}, running.world.clock.now(),
    )  # fmt: skip
    assert resumed.expires_at == running.world.clock.now() + timedelta(seconds=600)
    request = running.world.node.requests[sandbox.sandbox_id]
    assert (request.access_token, dict(request.env), request.keep_memory) == (token, {"X": "1"}, True)
    assert running.world.node.running[sandbox.sandbox_id].kept_memory


async def test_pause_and_resume_are_told(running: Running) -> None:
    """The sandbox's events have its pauses and resumes, and what became of its memory."""
    sandbox = await running.create()
    await pause(running, sandbox)
    await connect(running, sandbox)
    async with running.control.platform.database.read() as tx:
        events = [(event.kind, event.detail) for event in await event_list(tx, sandbox.team_id, sandbox.sandbox_id)]
    assert events == [("started", ""), ("paused", "Its memory is kept."), ("resumed", "With its memory.")]


async def test_what_was_asked_of_the_memory_is_told(running: Running) -> None:
    """A pause without memory, and one on a runtime that cannot keep it, say so; a cold resume asks the node for it."""
    asked, cannot, cold = [await running.create() for _ in range(3)]
    assert (await pause(running, asked, keep_memory=False)).keeps_memory is False
    running.world.node.can_freeze = False
    assert (await pause(running, cannot)).keeps_memory is False
    running.world.node.can_freeze = True
    await pause(running, cold)
    await connect(running, cold, keep_memory=False)
    assert not running.world.node.requests[cold.sandbox_id].keep_memory
    assert not running.world.node.running[cold.sandbox_id].kept_memory


async def test_only_running_ones_are_paused_and_paused_ones_resumed(running: Running) -> None:
    """A second pause and a resume of a running one are refused with E2B's sentences."""
    sandbox = await running.create()
    resume = partial(
        running.control.pausing.resume, running.team, sandbox.sandbox_id, 60, keep_memory=True, on_timeout=None
    )
    with pytest.raises(WrongState, match=f"Sandbox {sandbox.sandbox_id} is already running"):
        await resume()
    await pause(running, sandbox)
    with pytest.raises(WrongState, match=f"Error pausing sandbox - sandbox '{sandbox.sandbox_id}' is already paused"):
        await pause(running, sandbox)
    assert (await resume()).timeout_s == 60
    with pytest.raises(NotFound):
        await running.control.pausing.pause(TeamId("other"), sandbox.sandbox_id, keep_memory=True)


async def test_a_refused_pause_leaves_it_running(running: Running) -> None:
    """When the node cannot pause it, the sandbox runs on, with its route."""
    sandbox = await running.create()

    def refuse() -> None:
        raise Internal("It could not be paused and runs on.")

    running.world.node.before["pause_sandbox"] = refuse
    with pytest.raises(Internal):
        await pause(running, sandbox)
    assert (await running.row(sandbox.sandbox_id)).state is SandboxState.RUNNING
    await running.assert_consistent()


async def test_paused_ones_do_not_count_but_a_resume_does(running: Running) -> None:
    """A full team may pause one and create another; the paused one then waits for room."""
    boxes = [await running.create() for _ in range(20)]
    await pause(running, boxes[0])
    await running.create()
    with pytest.raises(LimitExceeded):
        await connect(running, boxes[0])
    await running.assert_consistent()
    await running.control.sandboxes.kill(running.team.team_id, boxes[1].sandbox_id)
    assert (await connect(running, boxes[0]))[1]
    await running.wait_ended(boxes[1].sandbox_id)


async def test_a_resume_needs_room_on_its_node(running: Running) -> None:
    """CPU and memory that another took meanwhile refuse the resume, which leaves it paused."""
    running.world.node.description = replace(running.world.node.description, memory_mib=1500)
    await running.control.platform.nodes.refresh()
    first = await running.create()
    await pause(running, first)
    second = await running.create()
    with pytest.raises(NoCapacity, match="memory is full"):
        await connect(running, first)
    await pause(running, second)
    assert (await connect(running, first))[1]


async def test_many_at_once_are_one_resume(running: Running) -> None:
    """Of ten connects at once one resumes, all get the running sandbox."""
    sandbox = await running.create()
    await pause(running, sandbox)

    def turn() -> bool:
        running.world.clock.advance(0.05)
        return all(task.done() for task in tasks)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(connect(running, sandbox)) for _ in range(10)]
        await wait_for(turn)
    assert sorted(task.result()[1] for task in tasks) == [False] * 9 + [True]
    assert len({task.result()[0].machine_id for task in tasks}) == 1


async def test_a_timeout_may_pause(running: Running) -> None:
    """With on_timeout pause a sandbox is paused at its end and can be resumed."""
    sandbox = await running.create(timeout_s=3, on_timeout=OnTimeout.PAUSE)
    cold = await running.create(timeout_s=3, on_timeout=OnTimeout.PAUSE, auto_pause_memory=False)
    paused = await wait_state(running, sandbox.sandbox_id, SandboxState.PAUSED, turn_s=0.1)
    assert paused.paused_at is not None
    assert timedelta(0) <= paused.paused_at - sandbox.expires_at < timedelta(seconds=1)
    assert paused.keeps_memory
    assert (await wait_state(running, cold.sandbox_id, SandboxState.PAUSED, turn_s=0.1)).keeps_memory is False
    resumed, _ = await connect(running, sandbox)
    assert resumed.expires_at == running.world.clock.now() + timedelta(seconds=300)
    assert resumed.on_timeout is OnTimeout.PAUSE
    await running.control.sandboxes.set_timeout(running.team, sandbox.sandbox_id, 0)
    assert (await wait_state(running, sandbox.sandbox_id, SandboxState.PAUSED)).timeout_s == 300


async def test_an_auto_pause_that_fails_never_kills(running: Running) -> None:
    """A sandbox that cannot be paused at its timeout lives on until it can."""
    sandbox = await running.create(timeout_s=3, on_timeout=OnTimeout.PAUSE)

    def refuse() -> None:
        raise Internal("not now")

    running.world.node.before["pause_sandbox"] = refuse

    async def is_postponed() -> bool:
        running.world.clock.advance(0.5)
        row = await running.row(sandbox.sandbox_id)
        return row.state is SandboxState.RUNNING and row.expires_at > sandbox.expires_at

    await wait_for(is_postponed)
    running.world.node.before.clear()
    await wait_state(running, sandbox.sandbox_id, SandboxState.PAUSED, turn_s=5)


async def test_an_idle_sandbox_ends_early(running: Running) -> None:
    """With an idle timeout a sandbox that does nothing is paused long before its timeout; a busy one is not."""
    idle = await running.create(timeout_s=3600, on_timeout=OnTimeout.PAUSE, idle_timeout_s=60)
    asked = await running.create(timeout_s=3600)
    paused = await wait_state(running, idle.sandbox_id, SandboxState.PAUSED, turn_s=5)
    assert paused.expires_at < idle.expires_at - timedelta(seconds=3000)
    assert (await running.row(asked.sandbox_id)).state is SandboxState.RUNNING


async def test_traffic_wakes_only_what_may_be_woken(running: Running) -> None:
    """With auto_resume traffic resumes it for its configured timeout, at least 300 s; without, or without its memory,
    it stays paused."""
    allowed, forbidden = await running.create(auto_resume=True, timeout_s=900), await running.create()
    for sandbox in (allowed, forbidden):
        await pause(running, sandbox)
    catalog = running.world.catalog
    assert catalog.routes[allowed.sandbox_id].state is RouteState.PAUSED
    assert catalog.tombstones[forbidden.sandbox_id].reason == "paused"
    assert catalog.waker is not None
    await catalog.waker(allowed.sandbox_id)
    assert catalog.routes[allowed.sandbox_id].state is RouteState.RUNNING
    woken = await running.row(allowed.sandbox_id)
    assert woken.expires_at == running.world.clock.now() + timedelta(seconds=900)
    assert (await running.control.pausing.wake(allowed.sandbox_id)) == woken
    with pytest.raises(Forbidden, match="is paused"):
        await running.control.pausing.wake(forbidden.sandbox_id)
    await pause(running, woken, keep_memory=False)
    assert allowed.sandbox_id not in catalog.routes
    with pytest.raises(Forbidden, match="is paused"):
        await running.control.pausing.wake(allowed.sandbox_id)


async def test_a_killed_paused_sandbox_is_gone(running: Running) -> None:
    """Kill of a paused one frees its disk and its reservation, and cannot be recovered."""
    sandbox = await running.create()
    await pause(running, sandbox)
    await running.control.sandboxes.kill(running.team.team_id, sandbox.sandbox_id)
    row = await running.wait_ended(sandbox.sandbox_id)
    assert (row.end_reason, row.recoverable_until) == (EndReason.KILLED, None)
    assert running.world.node.kept == {}
    with pytest.raises(WrongState, match="not kept any more"):
        await running.control.pausing.recover(running.team.team_id, sandbox.sandbox_id)


async def test_a_reboot_loses_memory_never_the_sandbox(running: Running) -> None:
    """After a reboot of its node a paused sandbox is there with its disk, and says so; a running one is reported."""
    kept, ran = await running.create(), await running.create()
    await pause(running, kept)
    running.world.node.reboot()

    async def has_noticed() -> bool:
        running.world.clock.advance(2)
        return (await running.row(kept.sandbox_id)).keeps_memory is False

    await wait_for(has_noticed)
    assert (await running.wait_ended(ran.sandbox_id, turn_s=1)).end_reason is EndReason.NODE_LOST
    assert (await connect(running, kept))[1]
    assert not running.world.node.running[kept.sandbox_id].kept_memory


async def test_a_frozen_machine_that_dies_takes_the_memory_only(running: Running) -> None:
    """The exit of a paused sandbox's machine does not end the sandbox."""
    sandbox = await running.create()
    await wait_for(lambda: running.world.node.is_watched)
    await pause(running, sandbox)
    node = running.world.node
    frozen = node.kept[sandbox.sandbox_id]
    node.running[sandbox.sandbox_id] = frozen
    node.kept[sandbox.sandbox_id] = replace(frozen, keeps_memory=False)
    node.end(sandbox.sandbox_id, ExitCause.OOM)

    async def has_noticed() -> bool:
        running.world.clock.advance(2)
        return (await running.row(sandbox.sandbox_id)).keeps_memory is False

    await wait_for(has_noticed)
    assert (await running.row(sandbox.sandbox_id)).state is SandboxState.PAUSED


async def test_saved_memory_counts_in_the_disk_quota_and_stops_no_pause_or_resume(world: World) -> None:
    """It is counted when its node says so, whichever control plane hears it; a new sandbox is refused for it, a pause
    and a resume never are, and a resume or a kill gives it back."""
    limits_mib = LIMITS.disk_mib
    async with run_control(world) as running:
        await quota_of_disk(running, 3 * limits_mib)
        first, second = await running.create(), await running.create()
        await pause(running, first)
        rests_in_files(world, first, saved_mib=limits_mib + 1)
        await wait_for(lambda: use_of_disk(running, 3 * limits_mib + 1))
        with pytest.raises(LimitExceeded, match="limit of disk"):
            await running.create()
        assert (await pause(running, second)).keeps_memory
        await connect(running, second)
    async with run_control(world) as running:
        await wait_for(lambda: use_of_disk(running, 3 * limits_mib + 1))
        await connect(running, first)
        assert await use_of_disk(running, 2 * limits_mib)
        await pause(running, first)
        rests_in_files(world, first, saved_mib=7)
        await wait_for(lambda: use_of_disk(running, 2 * limits_mib + 7))
    rests_in_files(world, first, saved_mib=0)
    async with run_control(world) as running:
        await wait_for(lambda: use_of_disk(running, 2 * limits_mib))
        await running.control.sandboxes.kill(running.team.team_id, first.sandbox_id)
        await running.wait_ended(first.sandbox_id)
        assert await use_of_disk(running, limits_mib)


async def quota_of_disk(running: Running, most_mib: int) -> None:
    async with running.control.platform.database.write() as tx:
        await tx.execute(update(teams).values(max_disk_mib=most_mib))


async def use_of_disk(running: Running, expected_mib: int) -> bool:
    running.world.clock.advance(2)
    async with running.control.platform.database.read() as tx:
        team = await team_fetch(tx, running.team.team_id)
        assert team is not None
        return (await team_use(tx, team)).disk_mib == expected_mib


def rests_in_files(world: World, sandbox: Sandbox, *, saved_mib: int) -> None:
    """Its node has saved its memory by itself, some time after the pause."""
    kept = world.node.kept[sandbox.sandbox_id]
    world.node.kept[sandbox.sandbox_id] = replace(kept, address="", saved_bytes=(saved_mib << 20) - bool(saved_mib))


async def test_node_and_store_that_differ_are_mended(running: Running) -> None:
    """A running row whose node holds it paused becomes paused; a paused one that runs is paused again; one that is
    nowhere ends as lost."""
    thawed, frozen, lost = [await running.create() for _ in range(3)]
    node = running.world.node
    node.kept[frozen.sandbox_id] = replace(
        node.running.pop(frozen.sandbox_id), state=NodeSandboxState.PAUSED, keeps_memory=True
    )
    for sandbox in (thawed, lost):
        await pause(running, sandbox)
    node.running[thawed.sandbox_id] = replace(node.kept.pop(thawed.sandbox_id), state=NodeSandboxState.RUNNING)
    del node.kept[lost.sandbox_id]
    await wait_state(running, frozen.sandbox_id, SandboxState.PAUSED, turn_s=2)

    def is_paused_again() -> bool:
        running.world.clock.advance(2)
        return thawed.sandbox_id in node.kept

    await wait_for(is_paused_again)
    assert (await running.wait_ended(lost.sandbox_id, turn_s=2)).end_reason is EndReason.NODE_LOST


async def test_a_timeout_can_be_taken_back(running: Running) -> None:
    """Within the grace time a sandbox that its timeout ended comes back paused with its disk; then it resumes cold."""
    sandbox = await running.create(timeout_s=3, metadata={"a": "b"})
    ended = await running.wait_ended(sandbox.sandbox_id, turn_s=0.5)
    assert ended.ended_at is not None
    assert ended.recoverable_until == ended.ended_at + timedelta(seconds=3600)
    await running.assert_consistent()
    with pytest.raises(NotFound):
        await running.control.pausing.recover(TeamId("other"), sandbox.sandbox_id)
    running.world.clock.advance(3500)
    back = await running.control.pausing.recover(running.team.team_id, sandbox.sandbox_id)
    assert (back.state, back.keeps_memory, back.metadata) == (SandboxState.PAUSED, False, {"a": "b"})
    assert (await connect(running, back))[1]


async def test_the_grace_bin_empties_itself(running: Running) -> None:
    """After the grace time the disk and its reservation are freed, and a recovery says that it is too late."""
    sandbox = await running.create(timeout_s=3)
    await running.wait_ended(sandbox.sandbox_id, turn_s=0.5)
    assert list(running.world.node.kept) == [sandbox.sandbox_id]
    running.world.clock.advance(3600)

    def is_gone() -> bool:
        running.world.clock.advance(5)
        return running.world.node.kept == {}

    await wait_for(is_gone)
    with pytest.raises(WrongState, match="not kept any more"):
        await running.control.pausing.recover(running.team.team_id, sandbox.sandbox_id)


async def test_the_grace_bin_makes_room(running: Running) -> None:
    """A create that finds the disk full takes the place of what has lain in the bin longest."""
    node = running.world.node
    node.description = replace(node.description, disk_mib=25_000)
    await running.control.platform.nodes.refresh()
    first, second = await running.create(timeout_s=3), await running.create(timeout_s=6)
    for sandbox in (first, second):
        await running.wait_ended(sandbox.sandbox_id, turn_s=0.5)
    await running.create()
    assert list(node.kept) == [second.sandbox_id]
    await running.create()
    with pytest.raises(NoCapacity, match="disk is full"):
        await running.create()


async def test_a_restart_knows_what_is_paused(world: World) -> None:
    """Paused sandboxes and the grace bin are there after a restart of the control plane, and the edge is told."""
    async with run_control(world) as first:
        stays, expires = await first.create(), await first.create(timeout_s=3)
        wakes = await first.create(auto_resume=True)
        await pause(first, stays)
        await pause(first, wakes)
        await first.wait_ended(expires.sandbox_id, turn_s=0.5)
    world.catalog.tombstones.clear()
    world.catalog.routes.clear()
    async with run_control(world) as second:
        assert world.catalog.routes[wakes.sandbox_id].state is RouteState.PAUSED
        assert world.catalog.tombstones[stays.sandbox_id].reason == "paused"
        await second.assert_consistent()
        assert (await connect(second, stays))[1]
        await second.control.pausing.recover(second.team.team_id, expires.sandbox_id)
        await second.assert_consistent()
