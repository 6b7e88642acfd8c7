"""What a control plane may rely on when it asks a node to pause, resume, keep, save and start anew."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.model.errors import DiskFull, FirebrickError, Internal, NotFound, Unavailable, WrongState
from firebrick.model.ids import SandboxId, new_sandbox_id, new_snapshot_id
from firebrick.model.machine import ExitCause
from firebrick.node.capacity import MachineFacts
from firebrick.node.recovery import end_everything
from firebrick.node.supervisor import NodeAgent
from firebrick.rpc.node_api import NodeSandbox, NodeSandboxState, PausedSandbox, PauseSandbox
from firebrick.runtimes.base import Capability
from tests.sim.node.world import World, request
from tests.support.wait import wait_for


@pytest.fixture(params=["disk on the host", "disk inside", "own kernel"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    world = World(tmp_path / "node")
    if request.param == "disk inside":
        world.keep_writes_inside()
    if request.param == "own kernel":
        world.runtime.offered |= {Capability.OWN_KERNEL}
    return world


def pause(sandbox_id: SandboxId, *, keep_memory: bool = True) -> PauseSandbox:
    return PauseSandbox(sandbox_id=sandbox_id, keep_memory=keep_memory)


async def paused(agent: NodeAgent, world: World, *, keep_memory: bool = True) -> tuple[NodeSandbox, PausedSandbox]:
    started = await agent.start_sandbox(request())
    world.write_inside(started, "41")
    return started, await agent.pause_sandbox(pause(started.sandbox_id, keep_memory=keep_memory))


async def only(agent: NodeAgent) -> NodeSandbox:
    (sandbox,) = await agent.list_sandboxes()
    return sandbox


async def test_a_pause_with_memory_freezes_the_machine(world: World, agent: NodeAgent) -> None:
    """It stands still, keeps slot and address, is listed as paused, and a repetition answers the same."""
    started, answer = await paused(agent, world)
    assert answer.keeps_memory
    assert world.runtime.machines[started.machine_id].is_frozen
    listed = await only(agent)
    assert listed == replace(
        started, state=NodeSandboxState.PAUSED, keeps_memory=True, paused_at=answer.paused_at
    )  # fmt: skip
    assert await agent.pause_sandbox(pause(started.sandbox_id)) == answer
    with pytest.raises(NotFound):
        await agent.read_usage(started.sandbox_id)


async def test_a_nearly_full_node_resumes_what_it_has(
    world: World, agent: NodeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes over its kept disk needs no other; new sandboxes are refused, and so is a disk that must be copied."""
    started, _ = await paused(agent, world, keep_memory=False)
    facts = MachineFacts(cpu_count=2, memory_mib=8000, disk_mib=100_000, disk_free_mib=1_000)
    monkeypatch.setattr("firebrick.node.supervisor.read_facts", lambda _: facts)
    with pytest.raises(DiskFull):
        await agent.start_sandbox(request())
    if world.writes_inside:
        with pytest.raises(DiskFull):
            await agent.resume_sandbox(request(started.sandbox_id))
        return
    resumed = await agent.resume_sandbox(request(started.sandbox_id))
    assert world.read_inside(resumed) == "41"


async def test_a_long_pause_gives_memory_back(world: World, agent: NodeAgent) -> None:
    """Once, after a while, and again only after the next pause."""
    started, _ = await paused(agent, world)
    machine = world.runtime.machines[started.machine_id]
    await wait_for(lambda: machine.reclaim_count == 1)
    await agent.resume_sandbox(request(started.sandbox_id))
    await agent.pause_sandbox(pause(started.sandbox_id))
    await wait_for(lambda: machine.reclaim_count == 2)


async def test_a_sandbox_at_rest_gives_back_what_it_freed(world: World, agent: NodeAgent) -> None:
    """Each time that it has worked and comes to rest."""
    world.runtime.offered |= {Capability.GIVES_BACK}
    started = await agent.start_sandbox(request())
    machine = world.runtime.machines[started.machine_id]
    for count in (1, 2):
        await wait_for(lambda count=count: machine.take_back_count == count)
        machine.cpu_ns += 10**15


async def test_a_sandbox_that_cannot_be_measured_lives_on(world: World, agent: NodeAgent) -> None:
    """It is asked again; and where nothing can be given back it is not asked."""
    started = await agent.start_sandbox(request())
    world.runtime.offered |= {Capability.GIVES_BACK}
    world.runtime.fail("usage")
    machine = world.runtime.machines[started.machine_id]
    await wait_for(lambda: machine.take_back_count == 1)
    assert await agent.list_sandboxes() == (started,)


async def test_a_full_disk_refuses_a_snapshot_and_harms_nothing(world: World, agent: NodeAgent) -> None:
    """DiskFull, nothing is left, and the sandbox goes on."""
    started = await agent.start_sandbox(request())
    world.rootfs.full = True
    world.guests.full = True
    with pytest.raises(DiskFull, match=r"is full, .* Free space"):
        await agent.snapshot_sandbox(started.sandbox_id, new_snapshot_id(), keep_memory=False)
    assert await agent.list_snapshots() == ()
    assert list((world.root / "snapshots" / "making").iterdir()) == []
    assert await only(agent) == started


async def test_a_resume_with_memory_is_the_same_machine_with_new_settings(world: World, agent: NodeAgent) -> None:
    """It runs again, its guest was given the new settings, and a repetition answers the same."""
    started, _ = await paused(agent, world)
    again = replace(request(started.sandbox_id), env={"A": "new"})
    resumed = await agent.resume_sandbox(again)
    assert resumed == replace(started, kept_memory=True)
    assert not world.runtime.machines[started.machine_id].is_frozen
    guest = world.guests.guests[world.stored()[started.machine_id].control_token]
    assert guest.settings is not None
    assert (guest.settings.env, guest.init_count, guest.is_held) == ({"A": "new"}, 2, False)
    assert await agent.resume_sandbox(again) == resumed == await only(agent)
    assert await agent.start_sandbox(again) == resumed


async def test_a_pause_without_memory_keeps_the_disk_only(world: World, agent: NodeAgent) -> None:
    """No machine, no slot; the resume makes a new machine that finds what the former one wrote."""
    started, answer = await paused(agent, world, keep_memory=False)
    assert not answer.keeps_memory
    assert (world.runtime.machines, world.taken_slot_count()) == ({}, 0)
    assert await agent.pause_sandbox(pause(started.sandbox_id)) == answer
    assert (await only(agent)).address == ""
    resumed = await agent.resume_sandbox(request(started.sandbox_id))
    assert (resumed.machine_id != started.machine_id, resumed.kept_memory) == (True, False)
    assert world.read_inside(resumed) == "41"
    assert await agent.resume_sandbox(request(started.sandbox_id)) == resumed == await only(agent)
    await world.assert_owned(agent)


async def test_without_a_freezer_only_the_disk_is_kept(world: World, agent: NodeAgent) -> None:
    """The wish for memory is answered with what could be done."""
    world.runtime.offered = world.runtime.offered - {"freeze"}
    started, answer = await paused(agent, world)
    assert not answer.keeps_memory
    assert world.read_inside(await agent.resume_sandbox(request(started.sandbox_id))) == "41"


async def test_kept_memory_can_be_given_up(world: World, agent: NodeAgent) -> None:
    """By a pause without it, and by a resume that does not want it."""
    started, _ = await paused(agent, world)
    assert not (await agent.pause_sandbox(pause(started.sandbox_id, keep_memory=False))).keeps_memory
    assert world.runtime.machines == {}
    other, _ = await paused(agent, world)
    resumed = await agent.resume_sandbox(replace(request(other.sandbox_id), keep_memory=False))
    assert (resumed.kept_memory, world.read_inside(resumed)) == (False, "41")


async def test_what_is_not_here_is_not_found(agent: NodeAgent) -> None:
    """Neither pause nor resume nor snapshot invents a sandbox."""
    unknown = new_sandbox_id()
    for asking in (
        agent.pause_sandbox(pause(unknown)),
        agent.resume_sandbox(request(unknown)),
        agent.snapshot_sandbox(unknown, new_snapshot_id(), keep_memory=False),
    ):
        with pytest.raises(NotFound):
            await asking
    assert not await agent.discard_sandbox(unknown)


async def test_a_paused_sandbox_is_not_started_anew(world: World, agent: NodeAgent) -> None:
    """A start would lose what is kept; it is refused, with memory and without."""
    for keep_memory in (True, False):
        started, _ = await paused(agent, world, keep_memory=keep_memory)
        with pytest.raises(WrongState, match="resume"):
            await agent.start_sandbox(request(started.sandbox_id))


async def test_a_pause_that_fails_leaves_it_running(world: World, agent: NodeAgent) -> None:
    """Whatever step fails, the sandbox goes on and can be paused later."""
    started = await agent.start_sandbox(request())
    world.runtime.fail("freeze")
    with pytest.raises(Internal):
        await agent.pause_sandbox(pause(started.sandbox_id))
    assert await only(agent) == started
    guest = world.guests.guests[world.stored()[started.machine_id].control_token]
    assert not guest.is_held
    assert (await agent.pause_sandbox(pause(started.sandbox_id))).keeps_memory


async def test_a_resume_whose_guest_is_silent_stays_paused(world: World, agent: NodeAgent) -> None:
    """It is frozen again and can be resumed once more."""
    started, _ = await paused(agent, world)
    world.guests.silent_init_count = 1
    with pytest.raises(Unavailable):
        await agent.resume_sandbox(request(started.sandbox_id))
    assert (await only(agent)).state is NodeSandboxState.PAUSED
    assert world.runtime.machines[started.machine_id].is_frozen
    assert (await agent.resume_sandbox(request(started.sandbox_id))).kept_memory


async def test_a_cold_resume_that_fails_keeps_the_disk(world: World, agent: NodeAgent) -> None:
    """Nothing of the failed machine stays, and the next attempt finds the disk."""
    started, _ = await paused(agent, world, keep_memory=False)
    world.runtime.fail("start")
    with pytest.raises(FirebrickError):
        await agent.resume_sandbox(request(started.sandbox_id))
    await world.assert_owned(agent)
    assert world.read_inside(await agent.resume_sandbox(request(started.sandbox_id))) == "41"


async def test_a_kill_can_leave_the_disk_to_the_grace_bin(world: World, agent: NodeAgent) -> None:
    """From running, frozen or paused; it is listed as kept, comes back by a resume, and a discard is the end."""
    for keep_memory in (None, True, False):
        started = await agent.start_sandbox(request())
        world.write_inside(started, "41")
        if keep_memory is not None:
            await agent.pause_sandbox(pause(started.sandbox_id, keep_memory=keep_memory))
        assert await agent.kill_sandbox(started.sandbox_id, keep_disk=True)
        assert await agent.kill_sandbox(started.sandbox_id, keep_disk=True)
        assert (await only(agent)).state is NodeSandboxState.KEPT
        assert world.runtime.machines == {}
        resumed = await agent.resume_sandbox(request(started.sandbox_id))
        assert (resumed.state, world.read_inside(resumed)) == (NodeSandboxState.RUNNING, "41")
        with pytest.raises(WrongState):
            await agent.discard_sandbox(started.sandbox_id)
        await agent.kill_sandbox(started.sandbox_id, keep_disk=True)
        assert await agent.discard_sandbox(started.sandbox_id)
        assert not await agent.discard_sandbox(started.sandbox_id)
        await world.assert_empty()


async def test_a_kill_of_a_paused_sandbox_is_the_end(world: World, agent: NodeAgent) -> None:
    """With memory and without; nothing is left of it."""
    for keep_memory in (True, False):
        started, _ = await paused(agent, world, keep_memory=keep_memory)
        assert await agent.kill_sandbox(started.sandbox_id)
        assert not await agent.kill_sandbox(started.sandbox_id)
        await world.assert_empty()


async def test_memory_that_is_lost_leaves_a_paused_sandbox(world: World, agent: NodeAgent) -> None:
    """A frozen machine that dies by itself takes its memory with it, and nothing else."""
    started, _ = await paused(agent, world)
    world.runtime.exit_machine(started.machine_id, ExitCause.OOM, 137)
    await wait_for(lambda: world.runtime.machines == {})
    await world.assert_owned(agent)
    assert (await only(agent)).state is NodeSandboxState.PAUSED
    assert not (await only(agent)).keeps_memory
    assert world.read_inside(await agent.resume_sandbox(request(started.sandbox_id))) == "41"


async def test_paused_sandboxes_outlive_the_agent_and_the_host(world: World) -> None:
    """A restart finds a frozen one frozen; after a reboot it is paused without memory; running ones are gone."""
    async with world.agent() as agent:
        frozen, answer = await paused(agent, world)
        cold, _ = await paused(agent, world, keep_memory=False)
        running = await agent.start_sandbox(request())
    async with world.agent() as agent:
        listed = {sandbox.sandbox_id: sandbox for sandbox in await agent.list_sandboxes()}
        assert (listed[frozen.sandbox_id].keeps_memory, listed[frozen.sandbox_id].paused_at) == (True, answer.paused_at)
        assert listed[running.sandbox_id] == running
        await wait_for(lambda: world.runtime.machines[frozen.machine_id].is_frozen)
    world.reboot()
    async with world.agent() as agent:
        assert {(s.sandbox_id, s.state, s.keeps_memory) for s in await agent.list_sandboxes()} == {
            (frozen.sandbox_id, NodeSandboxState.PAUSED, False),
            (cold.sandbox_id, NodeSandboxState.PAUSED, False),
        }
        for sandbox in (frozen, cold):
            assert world.read_inside(await agent.resume_sandbox(request(sandbox.sandbox_id))) == "41"
        await world.assert_owned(agent)


async def test_down_and_up_keep_what_is_paused(world: World) -> None:
    """The end of everything ends machines; a paused sandbox comes back from its disk."""
    async with world.agent() as agent:
        started, _ = await paused(agent, world)
        await agent.start_sandbox(request())
    await end_everything(world.drivers(), world.records)
    assert world.runtime.machines == {}
    async with world.agent() as agent:
        assert (await only(agent)).sandbox_id == started.sandbox_id
        assert world.read_inside(await agent.resume_sandbox(request(started.sandbox_id))) == "41"


@pytest.mark.parametrize("at_rest", [None, True, False])
async def test_a_snapshot_starts_others_and_disturbs_nothing(
    world: World, agent: NodeAgent, at_rest: bool | None
) -> None:
    """Of a running, frozen or paused one; several start from it, each with its own disk."""
    started = await agent.start_sandbox(request())
    world.write_inside(started, "41")
    if at_rest is not None:
        await agent.pause_sandbox(pause(started.sandbox_id, keep_memory=at_rest))
    before = await only(agent)
    snapshot_id = new_snapshot_id()
    snapshot = await agent.snapshot_sandbox(started.sandbox_id, snapshot_id, keep_memory=True)
    assert await only(agent) == before
    assert (snapshot.keeps_memory, snapshot.build_id) == (False, request().build_id)
    assert await agent.snapshot_sandbox(started.sandbox_id, snapshot_id, keep_memory=True) == snapshot
    forks = [await agent.start_sandbox(replace(request(), snapshot_id=snapshot_id)) for _ in range(3)]
    world.write_inside(forks[0], "42")
    assert [world.read_inside(fork) for fork in forks] == ["42", "41", "41"]
    await wait_for(lambda: is_stored(agent))
    assert await agent.delete_snapshot(snapshot_id)
    assert not await agent.delete_snapshot(snapshot_id)
    with pytest.raises(NotFound):
        await agent.start_sandbox(replace(request(), snapshot_id=snapshot_id))
    assert [world.read_inside(fork) for fork in forks] == ["42", "41", "41"]


async def is_stored(agent: NodeAgent) -> bool:
    return all(snapshot.stored_bytes is not None for snapshot in await agent.list_snapshots())


async def test_a_snapshot_comes_back_from_its_chunks(world: World, agent: NodeAgent) -> None:
    """The local file is a copy only: without it, also in a later process, the store has it."""
    started = await agent.start_sandbox(request())
    world.write_inside(started, "41")
    snapshot_id = new_snapshot_id()
    await agent.snapshot_sandbox(started.sandbox_id, snapshot_id, keep_memory=False)
    await wait_for(lambda: is_stored(agent))
    (world.root / "snapshots" / "disks" / snapshot_id / "disk").unlink()
    fork = await agent.start_sandbox(replace(request(), snapshot_id=snapshot_id))
    assert world.read_inside(fork) == "41"


async def test_a_snapshot_that_fails_leaves_nothing(world: World, agent: NodeAgent) -> None:
    """The sandbox goes on, and the same id can be used again."""
    started = await agent.start_sandbox(request())
    world.write_inside(started, "41")
    snapshot_id = new_snapshot_id()
    (world.root / "snapshots" / "making").rmdir()
    (world.root / "snapshots" / "making").touch()
    with pytest.raises(Internal, match="could not be written"):
        await agent.snapshot_sandbox(started.sandbox_id, snapshot_id, keep_memory=False)
    (world.root / "snapshots" / "making").unlink()
    assert await agent.list_snapshots() == ()
    assert await only(agent) == started
    assert (await agent.snapshot_sandbox(started.sandbox_id, snapshot_id, keep_memory=False)).build_id


async def test_a_kill_beats_whatever_is_under_way(world: World, agent: NodeAgent) -> None:
    """A pause that hangs is refused when its sandbox is killed."""
    started = await agent.start_sandbox(request())
    world.runtime.delay_s["freeze"] = 1000.0
    pausing = asyncio.ensure_future(agent.pause_sandbox(pause(started.sandbox_id)))
    await asyncio.sleep(0)
    assert await agent.kill_sandbox(started.sandbox_id)
    with pytest.raises(FirebrickError):
        await pausing
    await world.assert_empty()


async def test_a_pause_notes_an_agent_that_does_not_answer(world: World, agent: NodeAgent) -> None:
    """With and without memory, to a repetition and to the next agent too; a resume forgets it."""
    started = await agent.start_sandbox(request())
    world.guests.silent_ready_count = 1
    assert (await agent.pause_sandbox(pause(started.sandbox_id))).is_silent
    assert (await agent.pause_sandbox(pause(started.sandbox_id))).is_silent
    assert (await agent.pause_sandbox(replace(pause(started.sandbox_id), keep_memory=False))).is_silent
    await agent.resume_sandbox(request(started.sandbox_id))
    assert not (await agent.pause_sandbox(pause(started.sandbox_id))).is_silent
    await agent.resume_sandbox(request(started.sandbox_id))
    world.guests.silent_ready_count = 1
    assert (await agent.pause_sandbox(replace(pause(started.sandbox_id), keep_memory=False))).is_silent


async def test_a_pause_may_want_an_agent_that_answers(world: World, agent: NodeAgent) -> None:
    """With `require_healthy` a silent agent refuses the pause and the sandbox runs on; one that answers does not."""
    started = await agent.start_sandbox(request())
    wish = replace(pause(started.sandbox_id), require_healthy=True)
    world.guests.silent_ready_count = 1
    with pytest.raises(WrongState, match="does not answer"):
        await agent.pause_sandbox(wish)
    assert (await only(agent)).state is NodeSandboxState.RUNNING
    assert (await agent.pause_sandbox(wish)).keeps_memory


async def test_a_pause_without_memory_keeps_the_log(agent: NodeAgent) -> None:
    """While it rests, after its resume on a new machine, and after its end."""
    started = await agent.start_sandbox(request())
    counts = []

    async def count() -> int:
        return len(await agent.read_logs(started.sandbox_id, start_ms=0, limit=100))

    await agent.pause_sandbox(replace(pause(started.sandbox_id), keep_memory=False))
    counts.append(await count())
    await agent.resume_sandbox(request(started.sandbox_id))
    counts.append(await count())
    await agent.kill_sandbox(started.sandbox_id)
    assert counts == [1, 2]
    assert await count() == 2
