"""Warm machines: taken when they are there, replaced when they fail, given up when a slot is needed."""

import asyncio
from pathlib import Path

import pytest

from firebrick.model.egress import CLOSED
from firebrick.model.ids import new_snapshot_id
from firebrick.model.machine import ExitCause
from firebrick.node.supervisor import NodeAgent
from tests.sim.node.world import World, request
from tests.support.wait import wait_for


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "node")
    world.keep_warm(2)
    return world


async def warm_count(agent: NodeAgent) -> int:
    return (await agent.describe()).warm_count


async def test_a_create_takes_a_warm_machine_and_the_pool_refills(world: World) -> None:
    """The machine is started before anybody asks; after a create there are as many again."""
    async with world.agent() as agent:
        await wait_for(lambda: full(agent))
        ready = set(world.runtime.machines)
        started = await agent.start_sandbox(request())
        assert started.from_warm
        assert started.machine_id in ready
        await wait_for(lambda: full(agent))
        await world.assert_owned(agent)


async def full(agent: NodeAgent) -> bool:
    return await warm_count(agent) == 2


async def test_the_pool_grows_with_a_burst(tmp_path: Path) -> None:
    """Five creates at once empty it; afterwards five wait, and the node says that it wants as many."""
    world = World(tmp_path / "node", slot_count=16)
    world.keep_warm(2)
    async with world.agent() as agent:
        await wait_for(lambda: full(agent))
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(agent.start_sandbox(request()))

        async def has_grown() -> bool:
            return await warm_count(agent) == 5

        await wait_for(has_grown)
        assert (await agent.describe()).warm_wanted_count == 5
        await world.assert_owned(agent)


async def test_a_dead_warm_machine_costs_no_create(world: World) -> None:
    """A warm machine whose guest does not answer is replaced by a cold one within the same start."""
    async with world.agent() as agent:
        await wait_for(lambda: full(agent))
        world.guests.silent_init_count = 1
        started = await agent.start_sandbox(request())
        assert not started.from_warm
        await world.assert_owned(agent)


async def test_warm_machines_survive_a_restart(world: World) -> None:
    """They are adopted and taken as before."""
    async with world.agent() as agent:
        await wait_for(lambda: full(agent))
        ready = set(world.runtime.machines)
    async with world.agent() as reborn:
        await wait_for(lambda: full(reborn))
        assert set(world.runtime.machines) == ready
        assert (await reborn.start_sandbox(request())).machine_id in ready


async def test_a_warm_machine_gives_its_slot_to_a_sandbox(tmp_path: Path) -> None:
    """A create of another kind never fails for a slot that only a warm machine holds."""
    world = World(tmp_path / "node", slot_count=4)
    world.keep_warm(2)
    async with world.agent() as agent:
        await wait_for(lambda: full(agent))
        for _ in range(4):
            await agent.start_sandbox(request(egress=CLOSED))
        assert len(await agent.list_sandboxes()) == 4
        await world.assert_owned(agent)


async def test_warm_machines_that_end_are_replaced_later_and_later(world: World) -> None:
    """A pool whose machines die is not refilled in a hot loop."""
    async with world.agent() as agent:
        await wait_for(lambda: full(agent))
        for machine_id in list(world.runtime.machines):
            world.runtime.exit_machine(machine_id, ExitCause.GUEST_EXIT, 1)
        await wait_for(lambda: full(agent))
        assert len(world.runtime.machines) == 2


@pytest.mark.parametrize("is_dead", [False, True])
async def test_a_fork_takes_a_warm_machine_where_machines_write_inside(world: World, *, is_dead: bool) -> None:
    """Its agent writes the snapshot's files; when the warm machine fails, a cold one has them as well."""
    world.keep_writes_inside()
    async with world.agent() as agent:
        await wait_for(lambda: full(agent))
        first = await agent.start_sandbox(request())
        world.write_inside(first, "text")
        snapshot_id = new_snapshot_id()
        await agent.snapshot_sandbox(first.sandbox_id, snapshot_id, keep_memory=False)
        await wait_for(lambda: full(agent))
        world.guests.silent_init_count = int(is_dead)
        fork = await agent.start_sandbox(request(snapshot_id=snapshot_id))
        assert fork.from_warm is not is_dead
        assert world.read_inside(fork) == "text"
        await world.assert_owned(agent)


async def test_a_fork_starts_cold_where_the_disk_is_the_hosts(world: World) -> None:
    """A warm machine has a disk already, which cannot be changed for another."""
    async with world.agent() as agent:
        await wait_for(lambda: full(agent))
        first = await agent.start_sandbox(request())
        snapshot_id = new_snapshot_id()
        await agent.snapshot_sandbox(first.sandbox_id, snapshot_id, keep_memory=False)
        await wait_for(lambda: full(agent))
        assert not (await agent.start_sandbox(request(snapshot_id=snapshot_id))).from_warm
        await world.assert_owned(agent)
