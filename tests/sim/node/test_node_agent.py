"""What a control plane may rely on when it asks a node."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from firebrick.model.egress import CLOSED
from firebrick.model.errors import FirebrickError, Internal, Invalid, NoCapacity, NotFound, Unavailable, WrongState
from firebrick.model.ids import BuildId, new_sandbox_id
from firebrick.model.machine import ExitCause, RuntimeName
from firebrick.network.base import Refusal
from firebrick.node.guest_log import read_log_file
from firebrick.node.recovery import end_everything
from firebrick.node.supervisor import NodeAgent
from firebrick.rpc.node_api import PauseSandbox
from tests.sim.node.world import World, end_all_tasks, request
from tests.support.wait import wait_for


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "node")


@pytest.fixture
async def agent(world: World) -> AsyncIterator[NodeAgent]:
    async with world.agent() as agent:
        yield agent
        await world.assert_owned(agent)
        for sandbox in await agent.list_sandboxes():
            assert await agent.kill_sandbox(sandbox.sandbox_id)
        await world.assert_owned(agent)


async def test_a_started_sandbox_has_its_settings(world: World, agent: NodeAgent) -> None:
    """When the start is answered, the guest has taken environment, token and ids."""
    wanted = request()
    started = await agent.start_sandbox(wanted)
    guest = world.guests.guests[world.stored()[started.machine_id].control_token]
    assert guest.settings is not None
    assert (guest.settings.sandbox_id, guest.settings.access_token) == (wanted.sandbox_id, "secret")
    assert guest.settings.env == {"A": "b"}
    assert await agent.list_sandboxes() == (started,)


async def test_a_repeated_start_is_the_same_start(world: World, agent: NodeAgent) -> None:
    """Repeated at the same time or later, it answers the same and makes one machine."""
    wanted = request()
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(agent.start_sandbox(wanted)) for _ in range(5)]
    answers = {start.result().machine_id for start in starts}
    assert answers == {(await agent.start_sandbox(wanted)).machine_id}
    assert len(world.runtime.machines) == 1


async def test_a_caller_that_goes_away_does_not_stop_a_start(world: World, agent: NodeAgent) -> None:
    """The start goes on; whoever asks again joins it."""
    world.runtime.delay_s["start"] = 5.0
    wanted = request()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await agent.start_sandbox(wanted)
    assert (await agent.start_sandbox(wanted)).sandbox_id == wanted.sandbox_id
    assert len(world.runtime.machines) == 1


async def test_a_kill_ends_a_start_under_way(world: World, agent: NodeAgent) -> None:
    """The start is refused, the kill is acknowledged, and nothing is left."""
    world.runtime.delay_s["start"] = 1000.0
    wanted = request()
    starting = asyncio.ensure_future(agent.start_sandbox(wanted))
    await wait_for(lambda: world.rootfs.disks)
    assert await agent.kill_sandbox(wanted.sandbox_id)
    with pytest.raises(WrongState, match="killed"):
        await starting
    await world.assert_empty()


async def test_a_kill_ends_a_start_that_waits_its_turn(world: World, agent: NodeAgent) -> None:
    """A start that has not begun is ended as well, before it made anything."""
    world.runtime.delay_s["start"] = 20.0
    busy = [request() for _ in range(world.settings.start_concurrency)]
    starting = [asyncio.ensure_future(agent.start_sandbox(wanted)) for wanted in busy]
    wanted = request()
    waiting = asyncio.ensure_future(agent.start_sandbox(wanted))
    await wait_for(lambda: len(world.rootfs.disks) == len(busy))
    assert await agent.kill_sandbox(wanted.sandbox_id)
    with pytest.raises(WrongState):
        await waiting
    await asyncio.wait(starting)


async def test_a_kill_of_what_does_not_run_is_false(agent: NodeAgent) -> None:
    """An unknown sandbox, and one that was killed before."""
    started = await agent.start_sandbox(request())
    assert await agent.kill_sandbox(started.sandbox_id)
    assert not await agent.kill_sandbox(started.sandbox_id)
    assert not await agent.kill_sandbox(new_sandbox_id())


async def test_an_exit_is_told_with_its_cause(world: World, agent: NodeAgent) -> None:
    """Who watches hears which sandbox ended and why; what it held is given back."""
    exits = agent.watch_exits()
    started = await agent.start_sandbox(request())
    world.runtime.exit_machine(started.machine_id, ExitCause.OOM, 137)
    ended = await anext(exits)
    assert (ended.sandbox_id, ended.machine_id, ended.cause, ended.exit_code) == (
        started.sandbox_id, started.machine_id, ExitCause.OOM, 137,
    )  # fmt: skip
    await world.assert_empty()


async def test_who_was_killed_for_memory_is_told(world: World) -> None:
    """In the log of a sandbox that goes on, to the next agent too, and as the reason of an end."""
    os.mkfifo(world.kernel_log)
    async with world.agent() as agent:
        started = await agent.start_sandbox(request())
        line = (
            "6,{seq},2,-;oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=/firebrick-a/"
            f"{started.machine_id},task=python3,pid=4194000,uid=0\n"
        )
        writer = world.kernel_log.open("wb", buffering=0)
        writer.write(line.format(seq=7).encode())

        async def kills() -> list[str]:
            entries = await agent.read_logs(started.sandbox_id, start_ms=0, limit=100)
            return [entry.message for entry in entries if entry.fields.get("source") == "kernel"]

        async def is_told() -> bool:
            return await kills() == ["out of memory: the kernel killed python3"]

        await wait_for(is_told)
    async with world.agent() as agent:
        # The next process reads the kernel's log from its beginning again.
        writer.write(line.format(seq=7).encode())
        await wait_for(is_told)
        exits = agent.watch_exits()
        # Answered by its owner, so it has one again.
        await agent.pause_sandbox(PauseSandbox(sandbox_id=started.sandbox_id, keep_memory=True))
        await agent.resume_sandbox(request(started.sandbox_id))
        world.runtime.exit_machine(started.machine_id, ExitCause.OOM, 137)
        assert (await anext(exits)).detail == "the kernel killed python3"
        await wait_for(is_told)
        await world.assert_empty()
    writer.close()


async def test_a_machine_that_will_not_end_is_not_given_up(world: World, agent: NodeAgent) -> None:
    """While destroy fails, the kill is refused, slot and rootfs stay taken, and it is tried until it works."""
    started = await agent.start_sandbox(request())
    world.runtime.fail("destroy")
    with pytest.raises(FirebrickError, match="tried again"):
        await agent.kill_sandbox(started.sandbox_id)
    assert world.slots.free_count == world.slots.size - 1
    await world.assert_empty()


async def test_a_full_node_says_so(world: World, agent: NodeAgent) -> None:
    """Without a free slot a start is refused with NoCapacity and leaves nothing; then a kill makes room."""
    started = [await agent.start_sandbox(request()) for _ in range(world.slots.size)]
    with pytest.raises(NoCapacity):
        await agent.start_sandbox(request())
    await agent.kill_sandbox(started[0].sandbox_id)
    await wait_for(lambda: world.slots.free_count == 1)
    await agent.start_sandbox(request())


async def test_a_start_that_cannot_work_is_refused_at_once(agent: NodeAgent) -> None:
    """An unknown build, and a runtime that this node does not offer."""
    with pytest.raises(NotFound):
        await agent.start_sandbox(replace(request(), build_id=BuildId("unknown")))
    with pytest.raises(Invalid, match="gvisor"):
        await agent.start_sandbox(request(runtime=RuntimeName.GVISOR))


async def test_no_internet_is_denied_before_the_guest_knows_anything(world: World, agent: NodeAgent) -> None:
    """A sandbox without internet never has it, not even a warm one."""
    started = await agent.start_sandbox(request(egress=CLOSED))
    index = world.stored()[started.machine_id].slot_index
    assert index is not None
    assert world.slots.is_denied(world.slots.slot(index))


async def test_the_owner_reads_whom_a_sandbox_may_not_talk_to(world: World, agent: NodeAgent) -> None:
    """In its own log, and in no other's; a restart of the agent keeps it."""
    started, other = await agent.start_sandbox(request()), await agent.start_sandbox(request())
    index = world.stored()[started.machine_id].slot_index
    assert index is not None
    world.slots.refuse(
        Refusal(
            slot_index=index, name="other.test", address=IPv4Address("1.2.3.4"), port=443, reason="no", count=3
        )
    )  # fmt: skip
    entries = await agent.read_logs(started.sandbox_id, start_ms=0, limit=10)
    (entry,) = [item for item in entries if item.fields.get("source") == "network"]
    assert (entry.level, entry.message) == ("warn", "A connection to other.test on port 443 was refused: no.")
    assert entry.fields == {
        "source": "network", "host": "other.test", "address": "1.2.3.4", "port": "443", "count": "3",
    }  # fmt: skip
    assert entry not in await agent.read_logs(other.sandbox_id, start_ms=0, limit=10)
    machine = world.settings.machines_dir / started.machine_id
    assert entry in read_log_file(machine / "console.jsonl")


async def test_usage_comes_from_the_host(world: World, agent: NodeAgent) -> None:
    """CPU since the last reading in percent of a core, memory and disk with their limits."""
    started = await agent.start_sandbox(request())
    machine = world.runtime.machines[started.machine_id]
    world.rootfs.disks[started.machine_id] = 4096
    first = await agent.read_usage(started.sandbox_id)
    assert (first.disk_bytes, first.memory_limit_bytes) == (4096, 512 << 20)
    begin_s = world.clock.monotonic_s()
    await wait_for(lambda: world.clock.monotonic_s() - begin_s > 2)
    machine.cpu_ns += 1_000_000_000
    assert 0 < (await agent.read_usage(started.sandbox_id)).cpu_used_pct <= 100
    with pytest.raises(NotFound):
        await agent.read_usage(new_sandbox_id())


async def test_logs_outlive_their_sandbox(agent: NodeAgent) -> None:
    """The agent's entries are read while it runs and after its end; an unknown sandbox has none."""
    started = await agent.start_sandbox(request())
    before = await agent.read_logs(started.sandbox_id, start_ms=0, limit=10)
    assert [entry.message for entry in before] == ["settings taken"]
    await agent.kill_sandbox(started.sandbox_id)
    assert await agent.read_logs(started.sandbox_id, start_ms=0, limit=10) == before
    assert await agent.read_logs(new_sandbox_id(), start_ms=0, limit=10) == ()


async def test_a_graceful_stop_leaves_sandboxes_and_undoes_starts(world: World) -> None:
    """SIGTERM: what runs goes on running and is adopted with the same answer; what was starting is undone."""
    async with world.agent() as agent:
        running = await agent.start_sandbox(request())
        world.runtime.delay_s["start"] = 1000.0
        starting = asyncio.ensure_future(agent.start_sandbox(request()))
        await wait_for(lambda: len(world.rootfs.disks) == 2)
    with pytest.raises(Unavailable, match="stopping"):
        await starting
    assert set(world.runtime.machines) == {running.machine_id}
    with pytest.raises(Unavailable):
        await agent.start_sandbox(request())
    world.runtime.delay_s.clear()
    async with world.agent() as reborn:
        assert await reborn.list_sandboxes() == (running,)
        again = request(running.sandbox_id)
        assert await reborn.start_sandbox(again) == running
        assert await reborn.kill_sandbox(running.sandbox_id)
        await world.assert_empty()


async def test_a_sandbox_that_ended_while_nobody_looked_is_cleaned_up(world: World) -> None:
    """It is no longer listed after the restart, which is what the control plane compares with."""
    async with world.agent() as agent:
        gone = await agent.start_sandbox(request())
        kept = await agent.start_sandbox(request())
    world.runtime.exit_machine(gone.machine_id, ExitCause.GUEST_EXIT, 0)
    async with world.agent() as reborn:
        assert await reborn.list_sandboxes() == (kept,)
        await world.assert_owned(reborn)
        await reborn.kill_sandbox(kept.sandbox_id)
        await world.assert_empty()


async def test_a_machine_that_resists_at_a_restart_is_kept_and_tried_again(world: World) -> None:
    """A failing destroy neither stops the node from serving nor frees what the guest may still use."""
    async with world.agent() as agent:
        await agent.start_sandbox(request())
    await end_all_tasks()
    machine_id = next(iter(world.stored()))
    (world.root / "machines" / machine_id / "record.json").write_text(
        (world.root / "machines" / machine_id / "record.json").read_text().replace('"running"', '"ending"')
    )
    world.runtime.fail("destroy", nth=1)
    world.runtime.fail("destroy", nth=2)
    async with world.agent() as reborn:
        assert world.slots.free_count == world.slots.size - 1
        await reborn.start_sandbox(request())
        await wait_for(lambda: machine_id not in world.stored())
        await world.assert_owned(reborn)


async def test_an_unreadable_record_is_ended(world: World) -> None:
    """A record that a crash cut off ends its machine; a directory that is not ours stays."""
    async with world.agent() as agent:
        started = await agent.start_sandbox(request())
    (world.root / "machines" / started.machine_id / "record.json").write_text("{")
    (world.root / "machines" / "not-a-machine").mkdir()
    async with world.agent() as reborn:
        assert await reborn.list_sandboxes() == ()
        await world.assert_empty()
    assert (world.root / "machines" / "not-a-machine").is_dir()


async def test_down_ends_everything(world: World) -> None:
    """With the agent stopped, every machine, slot, rootfs and record of this node goes."""
    async with world.agent() as agent:
        for _ in range(3):
            await agent.start_sandbox(request())
    await end_everything(world.drivers(), world.records)
    assert not any(world.machine_ids().values())


async def test_a_machine_that_ends_while_it_starts_is_told_at_once(world: World, agent: NodeAgent) -> None:
    """Nobody waits for the readiness of a guest that has ended; its last words are in the detail."""
    world.guests.boots.clear()
    starting = asyncio.ensure_future(agent.start_sandbox(request()))
    await wait_for(lambda: world.runtime.machines)
    machine_id, machine = next(iter(world.runtime.machines.items()))
    console = os.open(machine.spec.directory / "console", os.O_RDWR | os.O_NONBLOCK)
    os.write(console, b"panic: no init\n")
    world.runtime.exit_machine(machine_id, ExitCause.GUEST_EXIT, 1)
    with pytest.raises(Internal, match="ended while it was starting") as caught:
        await starting
    os.close(console)
    assert "panic: no init" in caught.value.detail
    world.guests.boots.set()
