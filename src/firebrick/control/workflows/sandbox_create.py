"""Create a sandbox.

    + place     choose a node
    + reserve   one transaction: quota, capacity, row `creating`, idempotency key   - row ended, all freed
    + start     the node starts it                                                  - row ending, the node ends it
    + confirm   row -> running; its time begins
    + publish   the edge learns where it is                                         - withdrawn

A crash between the steps leaves the row in `creating`: nobody was told the id, so `finish_sandboxes` ends it.
"""

import asyncio
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from firebrick.control.actor import current_actor
from firebrick.control.platform import Platform
from firebrick.control.routing import publish_running
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.control.workflows.grace_bin import discard_oldest
from firebrick.control.workflows.sandbox_kill import begin_end, finish_end
from firebrick.lifecycle.quota import DISK_IS_FULL as TEAM_DISK_IS_FULL
from firebrick.lifecycle.sandbox_machine import Rejected, SandboxEvent, next_state
from firebrick.model.egress import egress_of
from firebrick.model.errors import DeadlineExceeded, Internal, LimitExceeded, MemoryRefused, NoCapacity, Unavailable
from firebrick.model.ids import NodeId
from firebrick.model.node import NodeState
from firebrick.model.sandbox import EndReason, Sandbox, SandboxState
from firebrick.placement.fit import DISK_IS_FULL, PlacementRequest
from firebrick.placement.place import place
from firebrick.rpc.node_api import NodeSandbox, StartSandbox
from firebrick.store.events import SandboxHappening, event_insert
from firebrick.store.idempotency import IdempotencyRecord, idempotency_delete_of, idempotency_insert
from firebrick.store.quotas import quota_check
from firebrick.store.reservations import reservation_insert
from firebrick.store.sandboxes import sandbox_fetch, sandbox_insert, sandbox_update_if

START_DEADLINE_S = 60.0
"""A start that takes longer is given up. Clients wait 60 s by default."""
MEMORY_KEY = "firebrick.memory"
"""The metadata with which a sandbox is created from a snapshot's disk alone."""
PLACE_ATTEMPTS = 4
"""Tries when what was free at the choice is taken at the reservation."""


@dataclass(slots=True, kw_only=True)
class SandboxCreate:
    """`sandbox` is the wish at first and the row as it stands after each step. `only_node` is where the snapshot lies
    that it starts from; `keep_memory` False: from its disk alone."""

    platform: Platform
    sandbox: Sandbox
    idempotency: IdempotencyRecord | None = None
    started: NodeSandbox | None = None
    only_node: NodeId | None = None
    keep_memory: bool = True
    steps_ms: dict[str, float] = field(default_factory=dict)


async def _place(create: SandboxCreate) -> None:
    create.sandbox = replace(create.sandbox, node_id=await _choose_node(create))


async def _choose_node(create: SandboxCreate) -> NodeId:
    sandbox, nodes = create.sandbox, create.platform.nodes
    request = PlacementRequest(
        limits=sandbox.limits, build_id=sandbox.build_id, runtime=sandbox.runtime, node_id=create.only_node
    )
    try:
        return place(request, await nodes.list_views(), seed=secrets.randbits(64)).node_id
    except NoCapacity:
        # What is stored may be a few seconds old (a slot came free, a node came back): look again before refusing.
        await nodes.refresh()
    while True:
        views = await nodes.list_views()
        if not any(view.state is NodeState.READY for view in views):
            raise Unavailable("No node answers at the moment, so no sandbox can be started. Try again in a moment.")
        try:
            return place(request, views, seed=secrets.randbits(64)).node_id
        except NoCapacity as exc:
            # The grace bin never keeps a new sandbox from starting: what has lain in it longest makes room.
            if DISK_IS_FULL not in exc.message or not await discard_oldest(create.platform):
                raise
            await nodes.refresh()


async def _reserve(create: SandboxCreate) -> None:
    attempt = 1
    while True:
        try:
            await _reserve_once(create)
            return
        except NoCapacity:
            if attempt == PLACE_ATTEMPTS:
                raise
            attempt += 1
            await _place(create)
        except LimitExceeded as exc:
            # What its grace bin holds counts as the team's, and keeps no new sandbox of it from starting either.
            is_disk = TEAM_DISK_IS_FULL in exc.message
            if not is_disk or not await discard_oldest(create.platform, create.sandbox.team_id):
                raise


async def _reserve_once(create: SandboxCreate) -> None:
    sandbox = create.sandbox
    assert sandbox.node_id is not None
    async with create.platform.database.write() as tx:
        if await sandbox_fetch(tx, sandbox.sandbox_id) is not None:
            return
        await quota_check(tx, sandbox.team_id, sandbox.limits, now=create.platform.clock.now())
        if create.idempotency is not None:
            await idempotency_insert(tx, create.idempotency)
        await sandbox_insert(tx, sandbox)
        await reservation_insert(
            tx, sandbox_id=sandbox.sandbox_id, node_id=sandbox.node_id, limits=sandbox.limits
        )  # fmt: skip


async def _undo_reserve(create: SandboxCreate) -> None:
    """Also forget the idempotency key, so that the same request may be tried again."""
    platform, sandbox_id = create.platform, create.sandbox.sandbox_id
    async with platform.database.read() as tx:
        if await sandbox_fetch(tx, sandbox_id) is None:
            return
    await begin_end(platform, sandbox_id, EndReason.ERROR, detail="It could not be created.")
    async with platform.database.write() as tx:
        await idempotency_delete_of(tx, sandbox_id)
        sandbox = await sandbox_fetch(tx, sandbox_id)
    if sandbox is not None and sandbox.state is SandboxState.ENDING:
        # NOTE: finish_end kills on the node once more; harmless, and one path for every end.
        await finish_end(platform, sandbox)


async def _start(create: SandboxCreate) -> None:
    sandbox, platform = create.sandbox, create.platform
    request = replace(start_request(platform, sandbox), keep_memory=create.keep_memory)
    deadline_s = platform.config.patient_s(START_DEADLINE_S)
    try:
        async with asyncio.timeout(deadline_s):
            create.started = await platform.nodes.client(sandbox.node_id).start_sandbox(request)
    except MemoryRefused as exc:
        # NOTE: the way out first, for reasons may be long and are cut.
        raise MemoryRefused(
            f'Nothing can go on from the memory of this snapshot here; create with metadata {MEMORY_KEY}: "false" to '
            f"start anew from its disk. {exc.message}"
        ) from exc
    except TimeoutError as exc:
        raise DeadlineExceeded(f"The sandbox did not start within {deadline_s:.0f} seconds. Try again.") from exc


async def _confirm(create: SandboxCreate) -> None:
    platform, started = create.platform, create.started
    assert started is not None
    async with platform.database.write() as tx:
        row = await sandbox_fetch(tx, create.sandbox.sandbox_id)
        if row is None:
            raise Internal("The sandbox's row vanished while it was created. Try again.")
        if row.state is SandboxState.RUNNING and row.machine_id == started.machine_id:
            create.sandbox = row
            return
        now = platform.clock.now()
        running = running_row(row, started, timeout_s=row.timeout_s, now=now)
        if isinstance(running, Rejected):
            raise Unavailable(f"Sandbox {row.sandbox_id} {running.reason}; it took too long to start. Try again.")
        create.sandbox = await sandbox_update_if(tx, running)
        await event_insert(tx, _started(create, now))
    platform.signals.expires(create.sandbox.expires_at)


def running_row(row: Sandbox, started: NodeSandbox, *, timeout_s: int, now: datetime) -> Sandbox | Rejected:
    """The row of a sandbox that a node has started or resumed: its time begins."""
    following = next_state(row.state, SandboxEvent.STARTED)
    if isinstance(following, Rejected):
        return following
    return replace(
        row,
        state=following,
        runtime=started.runtime,
        machine_id=started.machine_id,
        address=started.address,
        started_at=now,
        expires_at=now + timedelta(seconds=timeout_s),
        timeout_s=timeout_s,
        paused_at=None,
        keeps_memory=None,
        silent_at_pause=False,
    )


def _started(create: SandboxCreate, now: datetime) -> SandboxHappening:
    started, sandbox = create.started, create.sandbox
    assert started is not None
    facts = {
        "steps_ms": dict(create.steps_ms), "node": sandbox.node_id, "runtime": started.runtime.value,
        "from_warm": started.from_warm,
    }  # fmt: skip
    return SandboxHappening(
        sandbox_id=sandbox.sandbox_id, team_id=sandbox.team_id, at=now, kind="started", actor=current_actor(),
        facts=facts,
    )  # fmt: skip


async def _publish(create: SandboxCreate) -> None:
    await publish_running(create.platform, create.sandbox)


async def _undo_publish(create: SandboxCreate) -> None:
    await create.platform.catalog.withdraw(create.sandbox.sandbox_id, EndReason.ERROR.value)


async def _undo_start(create: SandboxCreate) -> None:
    """Mark the row first: should the node not answer now, the reconciler finds `ending` and goes on."""
    await begin_end(
        create.platform, create.sandbox.sandbox_id, EndReason.ERROR, detail="It could not be created."
    )  # fmt: skip
    client = create.platform.nodes.client(create.sandbox.node_id)
    await client.kill_sandbox(create.sandbox.sandbox_id)


def start_request(platform: Platform, sandbox: Sandbox) -> StartSandbox:
    """What a node must know to start or resume it."""
    return StartSandbox(
        sandbox_id=sandbox.sandbox_id,
        template_id=sandbox.template_id,
        build_id=sandbox.build_id,
        limits=sandbox.limits,
        env=sandbox.env,
        metadata=sandbox.metadata,
        access_token=platform.tokens.access_token(sandbox.sandbox_id) if sandbox.secure else "",
        runtime=sandbox.runtime,
        egress=egress_of(sandbox.allow_internet_access, sandbox.network),
        snapshot_id=sandbox.snapshot_id,
    )


STEPS: tuple[Step[SandboxCreate], ...] = (
    Step(name="place", act=_place),
    Step(name="reserve", act=_reserve, undo=_undo_reserve),
    Step(name="start", act=_start, undo=_undo_start),
    Step(name="confirm", act=_confirm),
    Step(name="publish", act=_publish, undo=_undo_publish),
)


async def create_sandbox(create: SandboxCreate) -> Sandbox:
    """Run the workflow; the sandbox is running and reachable when this returns.

    Raises:
        LimitExceeded: the team's quota. NoCapacity: no node fits. Unavailable: no node answers.
        AlreadyExists: the idempotency key is taken. DeadlineExceeded: the start took too long.
    """
    platform = create.platform
    try:
        with platform.working(create.sandbox.sandbox_id):
            await run_workflow("sandbox_create", STEPS, create, durations_ms=create.steps_ms)
    except BaseException:
        # An undo may have failed too: the row is then nobody's.
        platform.signals.endings.poke()
        raise
    return create.sandbox
