"""Memory that outlives its machine: saved when a pause grows long, by snapshots and by forks, and gone on from."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from firebrick.guestlink.base import GuestSilent
from firebrick.model.egress import Egress
from firebrick.model.errors import FirebrickError, Internal, MemoryRefused, Unavailable
from firebrick.model.ids import new_snapshot_id
from firebrick.model.machine import ExitCause
from firebrick.node.records import MachineState
from firebrick.node.recovery import end_everything
from firebrick.node.supervisor import NodeAgent
from firebrick.rpc.node_api import NodeSandbox, NodeSandboxState, PauseSandbox
from firebrick.runtimes.base import Capability
from tests.sim.node.world import World, request
from tests.support.wait import wait_for


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "node", slot_count=16)
    world.keep_memory_in_files()
    return world


async def counting(agent: NodeAgent, world: World) -> NodeSandbox:
    """A sandbox with something on its disk and something in its memory."""
    started = await agent.start_sandbox(request())
    world.write_inside(started, "41")
    world.guest(started).memory["counter"] = "7"
    return started


async def pause(agent: NodeAgent, sandbox: NodeSandbox, *, keep_memory: bool = True) -> None:
    answer = await agent.pause_sandbox(PauseSandbox(sandbox_id=sandbox.sandbox_id, keep_memory=keep_memory))
    assert answer.keeps_memory is keep_memory


async def saved(agent: NodeAgent, world: World) -> NodeSandbox:
    """A paused one whose machine has ended, its memory in files."""
    started = await counting(agent, world)
    await pause(agent, started)
    await wait_for(lambda: is_saved(agent, world, started))
    sizes = {found.sandbox_id: found.saved_bytes for found in await agent.list_sandboxes()}
    assert sizes[started.sandbox_id] > 0
    return started


async def is_saved(agent: NodeAgent, world: World, sandbox: NodeSandbox) -> bool:
    (listed,) = [found for found in await agent.list_sandboxes() if found.sandbox_id == sandbox.sandbox_id]
    assert (listed.state, listed.keeps_memory) == (NodeSandboxState.PAUSED, True), "it was missing, or without memory"
    return listed.address == "" and sandbox.machine_id not in world.runtime.machines and world.taken_slot_count() == 0


async def test_what_was_freed_is_given_back_before_it_is_saved(world: World, agent: NodeAgent) -> None:
    """By a pause and by a snapshot, while the kernel inside still runs."""
    world.runtime.offered |= {Capability.GIVES_BACK}
    started = await counting(agent, world)
    machine = world.runtime.machines[started.machine_id]
    before = machine.take_back_count
    await agent.snapshot_sandbox(started.sandbox_id, new_snapshot_id(), keep_memory=True)
    await pause(agent, started)
    assert machine.take_back_count >= before + 2


def counter(world: World, sandbox: NodeSandbox) -> str | None:
    return world.guest(sandbox).memory.get("counter")


async def resume(agent: NodeAgent, sandbox: NodeSandbox, *, keep_memory: bool = True) -> NodeSandbox:
    return await agent.resume_sandbox(replace(request(sandbox.sandbox_id), keep_memory=keep_memory))


async def test_a_long_pause_costs_no_memory_and_keeps_it(world: World, agent: NodeAgent) -> None:
    """After a while there is no machine and no slot; a pause that is repeated answers the same; the resume finds what
    its processes held, what the disk held, and a guest of its own token that goes on with its settings."""
    started = await saved(agent, world)
    await pause(agent, started)
    resumed = await resume(agent, started)
    assert (resumed.kept_memory, resumed.machine_id != started.machine_id) == (True, True)
    assert (counter(world, resumed), world.read_inside(resumed)) == ("7", "41")
    guest = world.guest(resumed)
    assert guest.settings is not None
    assert (guest.settings.sandbox_id, guest.is_held) == (started.sandbox_id, False)
    await world.assert_owned(agent)
    assert not (world.root / "machines" / started.machine_id).exists()


async def test_a_short_pause_stays_in_place(world: World, agent: NodeAgent) -> None:
    """Nothing is written: the same machine goes on."""
    started = await counting(agent, world)
    await pause(agent, started)
    assert world.guest(started).is_held
    assert await resume(agent, started) == replace(started, kept_memory=True)
    assert not world.guest(started).is_held


async def test_saved_memory_survives_restart_and_reboot(world: World) -> None:
    """Also the second time, for a sandbox that went on from memory is one like any other."""
    async with world.agent() as agent:
        started = await saved(agent, world)
    for _ in range(2):
        world.reboot()
        async with world.agent() as agent:
            resumed = await resume(agent, started)
            assert (resumed.kept_memory, counter(world, resumed)) == (True, "7")
            await pause(agent, resumed)
            await wait_for(lambda agent=agent, resumed=resumed: is_saved(agent, world, resumed))
            started = resumed


async def test_memory_is_saved_when_everything_ends(world: World) -> None:
    """`firebrick down` while the pause is young: up again, its processes go on."""
    async with world.agent() as agent:
        started = await counting(agent, world)
        await pause(agent, started)
    await end_everything(world.drivers(), world.records)
    assert world.runtime.machines == {}
    async with world.agent() as agent:
        resumed = await resume(agent, started)
        assert (resumed.kept_memory, counter(world, resumed)) == (True, "7")


async def test_memory_that_cannot_be_saved_costs_the_memory_at_most(world: World) -> None:
    """`firebrick down` on a machine whose save fails keeps the disk."""
    async with world.agent() as agent:
        started = await counting(agent, world)
        await pause(agent, started)
    world.runtime.fail("save_memory")
    await end_everything(world.drivers(), world.records)
    async with world.agent() as agent:
        (listed,) = await agent.list_sandboxes()
        assert not listed.keeps_memory
        resumed = await resume(agent, started)
        assert (resumed.kept_memory, counter(world, resumed), world.read_inside(resumed)) == (False, None, "41")


async def test_a_save_that_fails_leaves_it_frozen_in_place(world: World, agent: NodeAgent) -> None:
    """It is tried again later, and the sandbox can be resumed meanwhile."""
    started = await counting(agent, world)
    world.runtime.fail("save_memory")
    world.runtime.fail("save_memory", nth=2)
    await pause(agent, started)
    machine = world.runtime.machines[started.machine_id]
    await wait_for(lambda: machine.reclaim_count == 1)
    assert not list((world.root / "machines" / started.machine_id).glob("memory*"))
    await wait_for(lambda: is_saved(agent, world, started))
    assert (await resume(agent, started)).kept_memory


async def test_a_refusal_falls_back_to_the_disk_and_says_why(world: World, agent: NodeAgent) -> None:
    """Another kind of processor, say: `kept_memory` is false and the sandbox's log has the reason."""
    started = await saved(agent, world)
    world.runtime.refusal = "Its memory was saved on another kind of processor."
    resumed = await resume(agent, started)
    assert (resumed.kept_memory, counter(world, resumed), world.read_inside(resumed)) == (False, None, "41")
    entries = await agent.read_logs(started.sandbox_id, start_ms=0, limit=100)
    assert [entry.level for entry in entries if "another kind of processor" in entry.message] == ["warn"]


async def test_a_disk_that_was_written_to_refuses_its_memory(world: World, agent: NodeAgent) -> None:
    """Memory without the disk it remembers would destroy it."""
    started = await saved(agent, world)
    world.rootfs.stamp_suffix = "*"
    assert not (await resume(agent, started)).kept_memory


async def test_memory_can_be_given_up(world: World, agent: NodeAgent) -> None:
    """By a resume that does not want it, by a pause without, and by the grace bin."""
    first = await saved(agent, world)
    resumed = await resume(agent, first, keep_memory=False)
    assert (resumed.kept_memory, counter(world, resumed), world.read_inside(resumed)) == (False, None, "41")
    await agent.kill_sandbox(first.sandbox_id)
    second = await saved(agent, world)
    await pause(agent, second, keep_memory=False)
    assert not (world.root / "machines" / second.machine_id / "memory").exists()
    assert not (await resume(agent, second)).kept_memory
    await agent.kill_sandbox(second.sandbox_id)
    third = await saved(agent, world)
    assert await agent.kill_sandbox(third.sandbox_id, keep_disk=True)
    (listed,) = await agent.list_sandboxes()
    assert (listed.state, listed.keeps_memory) == (NodeSandboxState.KEPT, False)


@pytest.mark.parametrize("failing", ["start", "renew", "init"])
async def test_a_resume_that_fails_keeps_the_memory(world: World, agent: NodeAgent, failing: str) -> None:
    """Whatever step fails, it is paused with its memory as before, and the next attempt finds it."""
    started = await saved(agent, world)
    match failing:
        case "start":
            world.runtime.fail("start")
        case "renew":
            world.guests.silent_renew_count = 1
        case _:
            world.guests.silent_init_count = 1
    with pytest.raises(FirebrickError):
        await resume(agent, started)
    await world.assert_owned(agent)
    resumed = await resume(agent, started)
    assert (resumed.kept_memory, counter(world, resumed)) == (True, "7")


async def test_two_resumes_at_once_are_one(world: World, agent: NodeAgent) -> None:
    """Of a saved one, and of one that is being saved at that moment; both get the same machine."""
    started = await saved(agent, world)
    first, second = await asyncio.gather(resume(agent, started), resume(agent, started))
    assert first == second
    assert len(world.runtime.machines) == 1
    world.runtime.delay_s["save_memory"] = 5.0
    await pause(agent, first)
    await wait_for(lambda: any((world.root / "machines" / first.machine_id).glob("memory.new")))
    third, fourth = await asyncio.gather(resume(agent, started), resume(agent, started))
    assert third == fourth
    assert (third.kept_memory, counter(world, third), len(world.runtime.machines)) == (True, "7", 1)


async def test_what_comes_while_memory_is_saved_is_done_after(world: World, agent: NodeAgent) -> None:
    """A snapshot, a repeated pause, a kill: none is refused because the machine ends meanwhile."""
    for work in ("snapshot", "pause", "kill"):
        started = await counting(agent, world)
        world.runtime.delay_s["save_memory"] = 5.0
        await pause(agent, started)
        directory = world.root / "machines" / started.machine_id
        await wait_for(lambda directory=directory: any(directory.glob("memory.new")))
        world.runtime.delay_s.clear()
        if work == "snapshot":
            taken = await agent.snapshot_sandbox(started.sandbox_id, new_snapshot_id(), keep_memory=True)
            assert taken.keeps_memory
            await agent.delete_snapshot(taken.snapshot_id)
        elif work == "pause":
            await pause(agent, started)
        assert await agent.kill_sandbox(started.sandbox_id)
        await world.assert_empty()


@pytest.mark.parametrize("at_rest", ["running", "paused", "saved"])
async def test_a_fork_into_ten_has_the_memory_and_none_shares_it(world: World, agent: NodeAgent, at_rest: str) -> None:
    """Memory is saved once, for all; each has its disk, token, settings and randomness, and is not taken from the warm
    pool; the source goes on as it was."""
    started = await (saved if at_rest == "saved" else counting)(agent, world)
    if at_rest == "paused":
        await pause(agent, started)
    (before,) = await agent.list_sandboxes()
    snapshot_id = new_snapshot_id()
    taken = await agent.snapshot_sandbox(started.sandbox_id, snapshot_id, keep_memory=True)
    assert taken.keeps_memory
    assert await agent.list_sandboxes() == (before,)
    forks = [await agent.start_sandbox(replace(request(), snapshot_id=snapshot_id)) for _ in range(10)]
    assert {(fork.kept_memory, fork.from_warm, counter(world, fork)) for fork in forks} == {(True, False, "7")}
    guests = [world.guest(fork) for fork in forks]
    assert [guest.settings and guest.settings.sandbox_id for guest in guests] == [fork.sandbox_id for fork in forks]
    assert len({guest.randomness for guest in guests}) == 10
    world.write_inside(forks[0], "42")
    guests[0].memory["counter"] = "8"
    assert [world.read_inside(fork) for fork in forks[:3]] == ["42", "41", "41"]
    assert [counter(world, fork) for fork in forks[:3]] == ["8", "7", "7"]
    specs = [world.runtime.machines[fork.machine_id].spec for fork in forks]
    assert {spec.memory for spec in specs} == {world.root / "snapshots" / "disks" / snapshot_id / "memory"}
    await agent.delete_snapshot(snapshot_id)
    if at_rest == "running":
        assert not world.guest(started).is_held
    elif at_rest == "paused":
        assert await resume(agent, started) == replace(started, kept_memory=True)


async def test_a_snapshot_of_memory_comes_back_from_its_chunks(world: World, agent: NodeAgent) -> None:
    """Disk and memory, in one manifest; both are counted, and both are gone from the local disk meanwhile."""
    started = await counting(agent, world)
    snapshot_id = new_snapshot_id()
    await agent.snapshot_sandbox(started.sandbox_id, snapshot_id, keep_memory=True)
    await wait_for(lambda: is_stored(agent))
    local = world.root / "snapshots" / "disks" / snapshot_id
    (local / "disk").unlink()
    (local / "memory" / "machine").unlink()
    fork = await agent.start_sandbox(replace(request(), snapshot_id=snapshot_id))
    assert (fork.kept_memory, counter(world, fork), world.read_inside(fork)) == (True, "7", "41")


async def is_stored(agent: NodeAgent) -> bool:
    return all(snapshot.stored_bytes is not None for snapshot in await agent.list_snapshots())


async def test_a_snapshot_outlives_the_agent_with_its_memory(world: World) -> None:
    """The next one starts from it as this one would; under other limits from the disk alone, and only if asked."""
    snapshot_id = new_snapshot_id()
    async with world.agent() as agent:
        started = await counting(agent, world)
        await agent.snapshot_sandbox(started.sandbox_id, snapshot_id, keep_memory=True)
    async with world.agent() as agent:
        fork = await agent.start_sandbox(replace(request(), snapshot_id=snapshot_id))
        assert (fork.kept_memory, counter(world, fork)) == (True, "7")
        wanted = replace(request(), snapshot_id=snapshot_id)
        larger = replace(wanted, limits=replace(wanted.limits, memory_mib=1024))
        with pytest.raises(MemoryRefused, match="other limits"):
            await agent.start_sandbox(larger)
        other = await agent.start_sandbox(replace(larger, keep_memory=False))
        assert (other.kept_memory, counter(world, other), world.read_inside(other)) == (False, None, "41")


@pytest.mark.parametrize("failing", ["save_memory", "freeze", "hold"])
async def test_a_snapshot_of_memory_that_fails_harms_nothing(world: World, agent: NodeAgent, failing: str) -> None:
    """Nothing is left of it, the sandbox runs and its processes are not held."""
    started = await counting(agent, world)
    if failing == "hold":
        world.guests.silent_hold_count = 1
    else:
        world.runtime.fail(failing)
    with pytest.raises((Internal, Unavailable)):
        await agent.snapshot_sandbox(started.sandbox_id, new_snapshot_id(), keep_memory=True)
    assert await agent.list_sandboxes() == (started,)
    assert not world.runtime.machines[started.machine_id].is_frozen
    assert not world.guest(started).is_held
    assert list((world.root / "snapshots" / "making").iterdir()) == []


async def test_a_snapshot_may_leave_the_memory_out(world: World, agent: NodeAgent) -> None:
    """Of a running one and of a saved one: what starts from it starts anew on the disk."""
    for source in (counting, saved):
        started = await source(agent, world)
        snapshot_id = new_snapshot_id()
        taken = await agent.snapshot_sandbox(started.sandbox_id, snapshot_id, keep_memory=False)
        assert not taken.keeps_memory
        fork = await agent.start_sandbox(replace(request(), snapshot_id=snapshot_id))
        assert (fork.kept_memory, counter(world, fork), world.read_inside(fork)) == (False, None, "41")
        await agent.kill_sandbox(fork.sandbox_id)
        await agent.kill_sandbox(started.sandbox_id)


async def test_rules_hold_before_a_machine_goes_on(world: World, agent: NodeAgent) -> None:
    """What its kernel still sends of former connections meets the new sandbox's rules, not an open slot."""
    started = await counting(agent, world)
    snapshot_id = new_snapshot_id()
    await agent.snapshot_sandbox(started.sandbox_id, snapshot_id, keep_memory=True)
    world.runtime.delay_s["start"] = 1000.0
    wanted = replace(request(), snapshot_id=snapshot_id, egress=Egress(deny=(IPv4Network("0.0.0.0/0"),)))
    starting = asyncio.ensure_future(agent.start_sandbox(wanted))
    slots = [world.slots.slot(index) for index in range(world.slots.size)]
    await wait_for(lambda: any(world.slots.is_denied(slot) for slot in slots))
    assert set(world.runtime.machines) == {started.machine_id}
    assert await agent.kill_sandbox(wanted.sandbox_id)
    with pytest.raises(FirebrickError):
        await starting


async def test_processes_that_a_killed_agent_held_go_on(world: World) -> None:
    """It died between holding them and freezing the machine: the next one lets them go."""
    async with world.agent() as agent:
        started = await counting(agent, world)
    world.guest(started).is_held = True
    async with world.agent():
        await wait_for(lambda: not world.guest(started).is_held)


async def test_a_machine_that_was_not_held_is_never_saved(world: World, agent: NodeAgent) -> None:
    """Its guest agent was silent at the pause: it stays frozen in place, for from files its processes would run before
    they have randomness of their own; a fork of it has the disk only."""
    started = await counting(agent, world)
    world.guests.silent_ready_count = 1
    await pause(agent, started)
    machine = world.runtime.machines[started.machine_id]
    await wait_for(lambda: machine.reclaim_count == 1)
    assert world.stored()[started.machine_id].state is MachineState.PAUSED
    taken = await agent.snapshot_sandbox(started.sandbox_id, new_snapshot_id(), keep_memory=True)
    assert not taken.keeps_memory
    assert await resume(agent, started) == replace(started, kept_memory=True)


async def test_processes_that_ran_on_unrenewed_are_not_let_live(world: World, agent: NodeAgent) -> None:
    """A record may say that they were held when they were not: the guest agent knows, and the start fails."""
    started = await saved(agent, world)
    path = world.root / "machines" / started.machine_id / "memory" / "machine"
    path.write_text(path.read_text().replace('"held": true', '"held": false'))
    with pytest.raises(GuestSilent, match="before it was renewed"):
        await resume(agent, started)
    assert world.runtime.machines == {}
    assert not (await resume(agent, started, keep_memory=False)).kept_memory


async def test_a_frozen_machine_that_dies_while_it_is_saved_has_its_disk(world: World, agent: NodeAgent) -> None:
    """Whichever comes first, the sandbox is paused afterwards."""
    started = await counting(agent, world)
    world.runtime.delay_s["save_memory"] = 5.0
    await pause(agent, started)
    await wait_for(lambda: any((world.root / "machines" / started.machine_id).glob("memory.new")))
    world.runtime.exit_machine(started.machine_id, ExitCause.OOM, 137)
    await wait_for(lambda: world.runtime.machines == {})
    await world.assert_owned(agent)
    resumed = await resume(agent, started)
    assert world.read_inside(resumed) == "41"
    assert timedelta() <= resumed.started_at - started.started_at
