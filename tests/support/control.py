"""A real control plane on SQLite over a node in memory, with a clock that the test turns."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from firebrick.catalog.base import RouteState
from firebrick.config import Config
from firebrick.control.plane import ControlPlane, open_control_plane
from firebrick.control.routing import may_wake
from firebrick.control.sandboxes import NewSandbox
from firebrick.model.ids import BuildId, NodeId, SandboxId, TemplateId
from firebrick.model.machine import Limits
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.model.snapshot import SnapshotState
from firebrick.model.team import Team
from firebrick.rpc.node_api import NodeSandboxState
from firebrick.store.nodes import node_list_views
from firebrick.store.reservations import reservation_list
from firebrick.store.sandboxes import sandbox_fetch, sandbox_list_bin, sandbox_list_in_states
from firebrick.store.snapshots import snapshot_list_all
from tests.support.fake_node import FakeCatalog, FakeNode
from tests.support.manual_clock import ManualClock
from tests.support.wait import wait_for

NODE_ID = NodeId("nod_1")
BUILD_ID = BuildId("bld_1")
LIMITS = Limits(millicpu=2000, memory_mib=1024, disk_mib=10_240, process_count=100)
LIVING = [state for state in SandboxState if state is not SandboxState.ENDED]


@dataclass(slots=True, kw_only=True)
class World:
    """Everything outside the control plane, which outlives its restarts."""

    config: Config
    clock: ManualClock
    node: FakeNode
    catalog: FakeCatalog


@dataclass(slots=True, kw_only=True)
class Running:
    """A control plane that runs, and its first team."""

    world: World
    control: ControlPlane
    team: Team
    key: str | None
    template_id: TemplateId

    async def create(self, **changes: object) -> Sandbox:
        values = {"template": "base", "timeout_s": 300} | changes
        return await self.control.sandboxes.create(self.team, NewSandbox(**values))  # type: ignore[arg-type]

    async def row(self, sandbox_id: SandboxId) -> Sandbox:
        async with self.control.platform.database.read() as tx:
            row = await sandbox_fetch(tx, sandbox_id)
        assert row is not None
        return row

    async def wait_ended(self, sandbox_id: SandboxId, *, turn_s: float = 0) -> Sandbox:
        """Wait until the row says so; `turn_s` turns the clock that far before each look."""

        async def is_ended() -> bool:
            self.world.clock.advance(turn_s)
            return (await self.row(sandbox_id)).state is SandboxState.ENDED

        await wait_for(is_ended, status=lambda: [item.status for item in self.control.reconcilers])
        return await self.row(sandbox_id)

    async def living(self) -> list[Sandbox]:
        async with self.control.platform.database.read() as tx:
            return list(await sandbox_list_in_states(tx, LIVING))

    async def assert_consistent(self) -> None:
        """No row, reservation, route, sandbox or snapshot without the others."""
        rows, node = await self.living(), self.world.node
        running = {row.sandbox_id for row in rows if row.state is SandboxState.RUNNING}
        paused = {row.sandbox_id: row for row in rows if row.state is SandboxState.PAUSED}
        assert {*running, *paused} == {row.sandbox_id for row in rows}, "a sandbox is half way"
        assert set(node.running) == running
        routes = self.world.catalog.routes
        assert {item for item, route in routes.items() if route.state is RouteState.RUNNING} == running
        assert {item for item, route in routes.items() if route.state is RouteState.PAUSED} == {
            item for item, row in paused.items() if may_wake(row)
        }
        async with self.control.platform.database.read() as tx:
            reserved = {sandbox_id for sandbox_id, _ in await reservation_list(tx)}
            binned = {row.sandbox_id for row in await sandbox_list_bin(tx) if row.recoverable_until is not None}
            snapshots = await snapshot_list_all(tx)
            (view,) = await node_list_views(tx)
        assert reserved == {*running, *paused, *binned}
        assert view.reserved_millicpu == len(running) * LIMITS.millicpu
        assert view.reserved_disk_mib == len(reserved) * LIMITS.disk_mib
        held = {item: kept for item, kept in node.kept.items() if kept.state is NodeSandboxState.PAUSED}
        assert {item: kept.keeps_memory for item, kept in held.items()} == {
            item: row.keeps_memory for item, row in paused.items() if item in held
        }
        assert set(node.kept) == {*paused, *binned}
        assert {item.snapshot_id for item in snapshots} == set(node.snapshots)
        assert all(item.state is SnapshotState.READY and not item.is_private for item in snapshots)


def make_world(directory: Path) -> World:
    clock = ManualClock()
    return World(
        config=Config(data_dir=directory, max_sandboxes_per_team=20),
        clock=clock,
        node=FakeNode(NODE_ID, BUILD_ID, clock),
        catalog=FakeCatalog(),
    )


@asynccontextmanager
async def run_control(world: World) -> AsyncIterator[Running]:
    """Start (or restart) the control plane of that world."""
    async with open_control_plane(
        world.config, catalog=world.catalog, node_clients={NODE_ID: world.node}, clock=world.clock
    ) as control:
        template = await control.templates.ensure_shipped(alias="base", build_id=BUILD_ID, limits=LIMITS)
        team, key = await control.ensure_default_team()
        yield Running(world=world, control=control, team=team, key=key, template_id=template.template_id)
