"""Two control planes on one PostgreSQL and one node: everything is done once."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select

from firebrick.control.background.taking_turns import LEASE_S
from firebrick.control.plane import open_control_plane
from firebrick.model.ids import SandboxId
from firebrick.model.sandbox import OnTimeout, SandboxState
from firebrick.store.events import event_list
from firebrick.store.samples import usage_list
from firebrick.store.schema import leases
from tests.support.control import BUILD_ID, LIMITS, NODE_ID, Running, World, make_world
from tests.support.fake_node import FakeCatalog
from tests.support.postgres import missing, postgres_database, postgres_server
from tests.support.wait import wait_for

IN_TURN = {"sample_usage", "sample_teams", "empty_grace_bin", "sweep_snapshots", "forget_ended"}


@pytest.fixture
def database_url() -> Iterator[str]:
    reason = missing()
    if reason is not None:
        pytest.skip(f"two control planes NOT TESTED: {reason}")
    with postgres_server() as socket_dir, postgres_database(socket_dir) as url:
        yield url


@asynccontextmanager
async def plane(world: World, url: str) -> AsyncIterator[Running]:
    """One of them, with an edge's catalog of its own."""
    here = replace(world, catalog=FakeCatalog())
    async with open_control_plane(
        here.config, catalog=here.catalog, node_clients={NODE_ID: here.node}, clock=here.clock, database_url=url
    ) as control:
        template = await control.templates.ensure_shipped(alias="base", build_id=BUILD_ID, limits=LIMITS)
        team, key = await control.ensure_default_team()
        yield Running(world=here, control=control, team=team, key=key, template_id=template.template_id)


async def kinds_of(running: Running, sandbox_id: SandboxId) -> list[str]:
    async with running.control.platform.database.read() as tx:
        return [event.kind for event in await event_list(tx, running.team.team_id, sandbox_id)]


async def test_sweeps_of_two_do_everything_once(tmp_path: Path, database_url: str) -> None:
    """Timeouts that kill and that pause, the grace bin and the samples: each change once, and no round fails."""
    world = make_world(tmp_path)
    world.config = replace(world.config, grace_bin_s=120)
    asked: Counter[str] = Counter()
    for method in ("pause_sandbox", "discard_sandbox"):
        world.node.before[method] = lambda method=method: asked.update([method])  # type: ignore[misc]
    async with plane(world, database_url) as first, plane(world, database_url) as second:
        both = (first, second)
        killed = [(await both[number % 2].create(timeout_s=60)).sandbox_id for number in range(6)]
        paused = [
            (await both[number % 2].create(timeout_s=60, on_timeout=OnTimeout.PAUSE)).sandbox_id for number in range(6)
        ]

        async def have_settled() -> bool:
            world.clock.advance(1)
            rows = [await first.row(item) for item in (*killed, *paused)]
            return [row.state for row in rows] == [SandboxState.ENDED] * 6 + [SandboxState.PAUSED] * 6

        await wait_for(have_settled)
        for item in killed:
            assert await kinds_of(first, item) == ["started", "ending", "ended"]
        for item in paused:
            assert await kinds_of(second, item) == ["started", "paused"]
        async with first.control.platform.database.read() as tx:
            moments = [sample.at for sample in await usage_list(tx, killed[0], start=None, end=None)]
        assert all((after - before).total_seconds() >= 4 for before, after in pairwise(moments))
        assert asked["pause_sandbox"] == 6

        over = max([(await first.row(item)).recoverable_until or world.clock.now() for item in killed])

        async def is_bin_empty() -> bool:
            # Slowly once it is due: a round that takes longer than its lease is cut off, and done again.
            world.clock.advance(5 if world.clock.now() < over - timedelta(seconds=10) else 0.5)
            return asked["discard_sandbox"] >= 6

        await wait_for(is_bin_empty)
        await first.control.sandboxes.kill_all(first.team.team_id)
        for item in paused:
            await second.wait_ended(item, turn_s=1)
        assert asked["discard_sandbox"] == 6
        for running in both:
            assert [item.status.name for item in running.control.reconcilers if item.status.failure_count] == []


async def test_the_other_takes_over(tmp_path: Path, database_url: str) -> None:
    """When the holder is gone its leases run out, and what is left has them."""
    world = make_world(tmp_path)

    async def holders(running: Running) -> dict[str, str]:
        async with running.control.platform.database.read() as tx:
            return {row.name: row.holder for row in await tx.execute(select(leases))}

    async with plane(world, database_url) as second:
        async with plane(world, database_url) as first:

            async def are_taken() -> bool:
                world.clock.advance(1)
                return set(await holders(first)) == IN_TURN

            await wait_for(are_taken)
            before = await holders(first)
        world.clock.advance(LEASE_S)

        async def is_taken_over() -> bool:
            world.clock.advance(1)
            await second.control.nodes.list_all()
            async with second.control.platform.database.read() as tx:
                rows = list(await tx.execute(select(leases)))
            return all(row.until > world.clock.now() or row.name == "forget_ended" for row in rows)

        await wait_for(is_taken_over, status=lambda: before)
