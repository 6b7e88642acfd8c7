"""The control plane as one object: services for the API, reconcilers in the background.

async with open_control_plane(config, catalog=…, node_clients={…}, clock=…) as control:
    app = create_app(control)
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from firebrick.catalog.base import CatalogWriter
from firebrick.clock import Clock
from firebrick.config import Config
from firebrick.control.actor import Request, acting
from firebrick.control.audit import AuditService
from firebrick.control.autopsy import AutopsyService
from firebrick.control.background.empty_grace_bin import EmptyGraceBin
from firebrick.control.background.expire_sandboxes import ExpireSandboxes
from firebrick.control.background.finish_sandboxes import FinishSandboxes
from firebrick.control.background.forget_ended import ForgetEnded
from firebrick.control.background.note_key_use import NoteKeyUse
from firebrick.control.background.rebuild_catalog import rebuild_catalog
from firebrick.control.background.reconciler import Reconciler
from firebrick.control.background.sample_teams import SampleTeams
from firebrick.control.background.sample_usage import SampleUsage
from firebrick.control.background.sweep_snapshots import SweepSnapshots
from firebrick.control.background.sync_nodes import SyncNodes
from firebrick.control.background.taking_turns import TakingTurns
from firebrick.control.background.watch_exits import WatchExits
from firebrick.control.identity import IdentityService
from firebrick.control.jwts import Jwts
from firebrick.control.keys import KeyService
from firebrick.control.listing import ListingService
from firebrick.control.moving import MovingService
from firebrick.control.networking import NetworkingService
from firebrick.control.node_view import NodeService
from firebrick.control.nodes import NodeDirectory
from firebrick.control.observations import ObservationService
from firebrick.control.pausing import PauseService
from firebrick.control.platform import Platform
from firebrick.control.samples import LatestUsage
from firebrick.control.sandboxes import SandboxService
from firebrick.control.signals import Waker
from firebrick.control.snapshots import SnapshotService
from firebrick.control.teams import TeamService, ensure_default_team
from firebrick.control.templates import TemplateService
from firebrick.control.tokens import SEED_NAME, Secrets, Tokens, load_secrets, load_seed
from firebrick.control.users import UserService
from firebrick.log import get_log
from firebrick.model.ids import NodeId, SandboxId
from firebrick.model.sandbox import SandboxState
from firebrick.model.team import Team
from firebrick.rpc.node_api import NodeClient
from firebrick.store.database import Database
from firebrick.store.migrate import migrate
from firebrick.store.sandboxes import sandbox_count_by_state

log = get_log("control")


class ControlPlane:
    """Services and reconcilers over one platform. It owns nothing that must be closed but what `run` starts."""

    def __init__(self, platform: Platform, secrets: Secrets) -> None:
        self.platform = platform
        latest = LatestUsage()
        self.audit = AuditService(platform)
        self.keys = KeyService(platform, self.audit)
        self.teams = TeamService(platform, self.keys, self.audit)
        jwts = Jwts(secrets.issuer_seed, platform.config, platform.clock)
        self.users = UserService(platform, self.audit, jwts)
        self.identity = IdentityService(platform, self.keys, self.users, jwts, secrets.admin_token)
        self.nodes = NodeService(platform, self.audit)
        self.templates = TemplateService(platform.database, platform.clock)
        self.autopsies = AutopsyService(platform)
        self.sandboxes = SandboxService(platform, self.templates, self.autopsies)
        self.pausing = PauseService(platform, self.sandboxes)
        platform.catalog.waker = self._wake
        self.snapshots = SnapshotService(platform, self.sandboxes, self.autopsies)
        self.moving = MovingService(platform, self.templates, self.audit, secrets.seal_seed)
        self.networking = NetworkingService(platform, self.sandboxes)
        self.listing = ListingService(platform)
        self.observations = ObservationService(platform, self.sandboxes, latest)
        clock, signals = platform.clock, platform.signals
        exits = {node_id: WatchExits(platform, node_id) for node_id in platform.nodes.clients}
        finish = FinishSandboxes(platform, born_at=clock.now(), is_only_one=platform.database.is_sqlite)
        sweep = SweepSnapshots(platform, is_only_one=platform.database.is_sqlite)
        self.reconcilers = (
            Reconciler("sync_nodes", SyncNodes(platform, exits).round, clock, signals.nodes),
            Reconciler("finish_sandboxes", finish.round, clock, signals.endings),
            Reconciler("expire_sandboxes", ExpireSandboxes(platform).round, clock, signals.expiry),
            self._in_turn("sample_usage", SampleUsage(platform, latest).round),
            self._in_turn("sample_teams", SampleTeams(platform).round),
            self._in_turn("empty_grace_bin", EmptyGraceBin(platform).round),
            self._in_turn("sweep_snapshots", sweep.round, signals.snapshots),
            self._in_turn("forget_ended", ForgetEnded(platform, self.audit).round),
            Reconciler("note_key_use", NoteKeyUse(self.keys).round, clock),
            *(Reconciler(f"watch_exits:{node_id}", watch.round, clock) for node_id, watch in exits.items()),
        )

    def _in_turn(self, name: str, round: Callable[[], Awaitable[float]], waker: Waker | None = None) -> Reconciler:
        """One that only one control plane runs at a time, when several share the store."""
        return Reconciler(name, TakingTurns(self.platform, name, round).round, self.platform.clock, waker)

    async def _wake(self, sandbox_id: SandboxId) -> None:
        """For the edge; see `PauseService.wake`."""
        with acting(Request(actor="traffic")):
            await self.pausing.wake(sandbox_id)

    @property
    def config(self) -> Config:
        return self.platform.config

    async def ensure_default_team(self, wanted_key: str | None = None) -> tuple[Team, str | None]:
        """The first team, and its API key if it was stored just now. See `teams.ensure_default_team`."""
        platform = self.platform
        return await ensure_default_team(
            platform.database, clock=platform.clock, config=platform.config, wanted_key=wanted_key
        )

    async def count_sandboxes(self) -> Mapping[SandboxState, int]:
        """How many sandboxes of all teams are in each state but `ended`."""
        async with self.platform.database.read() as tx:
            return await sandbox_count_by_state(tx)

    async def recover(self) -> None:
        """Before the first request: tell the catalog of what runs, look at the nodes."""
        count = await rebuild_catalog(self.platform)
        await self.platform.nodes.refresh()
        log.info("control.recovered", running_count=count)

    async def run(self) -> None:
        """The reconcilers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reconciler in self.reconcilers:
                group.create_task(reconciler.run(), name=reconciler.status.name)


@asynccontextmanager
async def open_control_plane(
    config: Config,
    *,
    catalog: CatalogWriter,
    node_clients: Mapping[NodeId, NodeClient],
    clock: Clock,
    database_url: str | None = None,
) -> AsyncIterator[ControlPlane]:
    """Migrate the database, recover what an earlier process left, and run until the block ends.

    Nodes need not answer yet. `database_url` None takes the configured one.
    """
    tokens = Tokens(load_seed(config.data_dir / SEED_NAME))
    database = Database(database_url or config.database_url)
    try:
        await migrate(database)
        nodes = NodeDirectory(node_clients, database, clock, patience=config.patience)
        platform = Platform(
            database=database, nodes=nodes, catalog=catalog, clock=clock, config=config, tokens=tokens
        )  # fmt: skip
        control = ControlPlane(platform, load_secrets(config))
        await control.recover()
        # A task of this block, cancelled and awaited at its end: a task group would have to be entered and left in
        # the caller's task, which an ASGI lifespan does not promise.
        background = asyncio.create_task(control.run(), name="control.background")
        try:
            yield control
        finally:
            background.cancel()
            await asyncio.wait((background,))
    finally:
        await database.close()
