"""New machines go on from the memory of one of their kind that booted, and boot where that cannot be."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.model.errors import FirebrickError
from firebrick.model.machine import ExitCause
from firebrick.node.records import MachineState
from firebrick.node.supervisor import NodeAgent
from firebrick.rpc.node_api import NodeSandbox
from tests.sim.node.test_crash_sweep import MOST_STEPS
from tests.sim.node.world import LIMITS, Steps, World, request, until_dead
from tests.support.wait import wait_for


@pytest.fixture
def world(tmp_path: Path) -> World:
    return remembering(tmp_path / "node")


def remembering(root: Path) -> World:
    """No machine is kept warm, so that each create starts one."""
    world = World(root, slot_count=16)
    world.keep_memory_in_files()
    world.settings = replace(world.settings, template_memory_count=2)
    return world


def source_of(world: World, sandbox: NodeSandbox) -> Path | None:
    """Where a sandbox's machine went on from; None: it booted."""
    return world.runtime.machines[sandbox.machine_id].spec.memory


def memories(world: World) -> list[Path]:
    """All that are kept; nothing half made lies beside them."""
    root = world.root / "template_memory"
    assert not list((root / "making").glob("*"))
    return sorted(path / "memory" for path in root.iterdir() if path.name != "making") if root.is_dir() else []


async def test_the_second_machine_goes_on_from_the_first(world: World, agent: NodeAgent) -> None:
    """It is a sandbox like one that booted: with settings, token and randomness of its own, its processes let go, and
    nobody is told of memory that was kept."""
    first, second, third = [await agent.start_sandbox(request()) for _ in range(3)]
    (memory,) = memories(world)
    assert [source_of(world, sandbox) for sandbox in (first, second, third)] == [None, memory, memory]
    assert {(sandbox.from_warm, sandbox.kept_memory) for sandbox in (first, second, third)} == {(False, False)}
    guests = [world.guest(sandbox) for sandbox in (first, second, third)]
    assert [guest.settings and guest.settings.sandbox_id for guest in guests] == [
        sandbox.sandbox_id for sandbox in (first, second, third)
    ]
    assert not any(guest.is_held for guest in guests)
    assert len({guest.randomness for guest in guests[1:]}) == 2
    assert len({record.control_token for record in world.stored().values()}) == 3
    world.write_inside(second, "41")
    assert world.read_inside(second) == "41"
    assert world.read_inside(third) == "0"


async def test_warm_machines_go_on_from_it_too(world: World) -> None:
    """The first is saved before it is anybody's; those that follow are as ready, with nothing held inside."""
    world.keep_warm(1)
    async with world.agent() as agent:
        sources = []
        for _ in range(3):
            await wait_for(lambda: is_warm(agent))
            started = await agent.start_sandbox(request())
            assert (started.from_warm, started.kept_memory, world.guest(started).is_held) == (True, False, False)
            sources.append(source_of(world, started))
        (memory,) = memories(world)
        assert sources == [None, memory, memory]
        await wait_for(lambda: is_warm(agent))
        warm = [record for record in world.stored().values() if record.state is MachineState.WARM]
        assert [world.guests.guests[record.control_token].is_held for record in warm] == [False]
        await world.assert_owned(agent)


async def is_warm(agent: NodeAgent) -> bool:
    return (await agent.describe()).warm_count == 1


async def test_a_create_that_somebody_waits_for_saves_nothing(world: World) -> None:
    """Where machines are kept warm, one of those is saved."""
    world.keep_warm(1)
    world.settings = replace(world.settings, always_hot=(), warm_memory_mib=0)
    async with world.agent() as agent:
        await agent.start_sandbox(request())
        assert memories(world) == []


@pytest.mark.parametrize("failing", ["start", "renew", "init", "exit"])
async def test_where_it_fails_the_machine_boots(world: World, agent: NodeAgent, failing: str) -> None:
    """Within the same create. What failed before it was ready is given up, and made anew from the one that booted."""
    await agent.start_sandbox(request())
    (former,) = memories(world)
    match failing:
        case "start":
            world.runtime.fail("start")
        case "renew":
            world.guests.silent_renew_count = 1
        case "exit":
            world.guests.boots.clear()
            starting = asyncio.ensure_future(agent.start_sandbox(request()))
            await wait_for(lambda: len(world.runtime.machines) == 2)
            world.runtime.exit_machine(list(world.runtime.machines)[-1], ExitCause.GUEST_EXIT, 1)
            await wait_for(lambda: list(world.runtime.machines.values())[-1].spec.memory is None)
            world.guests.boots.set()
            assert source_of(world, await starting) is None
        case _:
            world.guests.silent_init_count = 1
    if failing != "exit":
        assert source_of(world, await agent.start_sandbox(request())) is None
    await wait_for(lambda: len(memories(world)) == 1)
    assert (memories(world) == [former]) is (failing == "init")
    assert source_of(world, await agent.start_sandbox(request())) in memories(world)


async def test_a_kind_that_never_goes_on_boots_from_then_on(world: World, agent: NodeAgent) -> None:
    """Each create works; after two failures in a row none is delayed by a third."""
    await agent.start_sandbox(request())
    for _ in range(2):
        world.guests.silent_renew_count = 1
        await agent.start_sandbox(request())
    await wait_for(lambda: memories(world) == [])
    assert source_of(world, await agent.start_sandbox(request())) is None
    assert memories(world) == []


@pytest.mark.parametrize("failing", ["save_memory", "freeze", "hold", "capture"])
async def test_a_save_that_fails_costs_no_create(world: World, agent: NodeAgent, failing: str) -> None:
    """Nothing is left of it, and the next create tries again."""
    if failing == "hold":
        world.guests.silent_hold_count = 1
    elif failing == "capture":
        world.rootfs.failures.append("capture")
    else:
        world.runtime.fail(failing)
    started = await agent.start_sandbox(request())
    assert not world.guest(started).is_held
    assert not world.runtime.machines[started.machine_id].is_frozen
    assert memories(world) == []
    await agent.start_sandbox(request())
    assert len(memories(world)) == 1


def another_agent(world: World) -> None:
    world.agent_version = "2"


def another_kernel(world: World) -> None:
    world.runtime.version = "2"


def another_processor(world: World) -> None:
    world.runtime.refusal = "It was saved on another kind of processor."


def other_name_servers(world: World) -> None:
    world.settings = replace(world.settings, dns_servers=("192.0.2.9",))


def turned_off(world: World) -> None:
    world.settings = replace(world.settings, template_memory_count=0)


def damaged(world: World) -> None:
    (memory,) = memories(world)
    (memory.parent / "memory.json").write_text("{")


@pytest.mark.parametrize(
    "change", [None, another_agent, another_kernel, another_processor, other_name_servers, turned_off, damaged]
)
async def test_the_next_node_agent_takes_what_still_fits(world: World, change: Callable[[World], None] | None) -> None:
    """What would differ from a machine that boots now is removed."""
    async with world.agent() as agent:
        first = await agent.start_sandbox(request())
        await agent.kill_sandbox(first.sandbox_id)
    if change is not None:
        change(world)
    async with world.agent() as agent:
        kept = memories(world)
        assert len(kept) == (change is None)
        started = await agent.start_sandbox(request())
        assert source_of(world, started) == (kept[0] if kept else None)
        await agent.kill_sandbox(started.sandbox_id)


async def test_the_kind_that_was_used_least_lately_goes(world: World, agent: NodeAgent) -> None:
    """Each combination of template, runtime and limits is a kind; two are kept here."""
    kinds = [replace(LIMITS, memory_mib=memory_mib) for memory_mib in (256, 512, 1024)]
    for limits in (kinds[0], kinds[1], kinds[0], kinds[2]):
        await agent.start_sandbox(replace(request(), limits=limits))
    await wait_for(lambda: len(memories(world)) == 2)
    again = [await agent.start_sandbox(replace(request(), limits=limits)) for limits in (kinds[0], kinds[2])]
    assert sorted(path for sandbox in again if (path := source_of(world, sandbox))) == memories(world)


async def test_a_kill_while_it_is_saved(world: World, agent: NodeAgent) -> None:
    """The save is given up with the machine."""
    world.runtime.delay_s["save_memory"] = 1000.0
    wanted = request()
    starting = asyncio.ensure_future(agent.start_sandbox(wanted))
    await wait_for(lambda: any((world.root / "template_memory" / "making").glob("*/memory")))
    assert await agent.kill_sandbox(wanted.sandbox_id)
    with pytest.raises(FirebrickError):
        await starting
    world.runtime.delay_s.clear()
    assert memories(world) == []
    await agent.start_sandbox(request())


@pytest.mark.parametrize("is_made", [False, True])
async def test_a_start_killed_at_any_step_leaks_nothing(tmp_path: Path, *, is_made: bool) -> None:
    """While the memory is made and while a machine goes on from it: the next agent finds a memory that is whole, or
    none, and starts from it or makes it."""
    for crash_at in range(1, MOST_STEPS):
        world = remembering(tmp_path / f"{is_made}-{crash_at}")
        steps = Steps()
        agent = world.build(steps)
        await agent.open()
        if is_made:
            await agent.start_sandbox(request())
        steps.crash_at = len(steps.passed) + crash_at
        wanted = request()
        if not await until_dead(steps, agent.start_sandbox(wanted)):
            await agent.close()
            break
        async with world.agent() as reborn:
            before = memories(world)
            assert len(before) <= 1
            await world.assert_owned(reborn)
            started = await reborn.start_sandbox(wanted)
            assert source_of(world, started) in (None, *before)
            assert len(memories(world)) == 1
            for sandbox in await reborn.list_sandboxes():
                assert await reborn.kill_sandbox(sandbox.sandbox_id)
            await world.assert_empty()
    assert 10 < crash_at < MOST_STEPS - 1
