"""Take a snapshot of a sandbox, which goes on as it was.

    + record    row `creating`, and the template that stands for it      - row `deleting`, then gone
    + take      the node saves the disk (and the memory where it can)    - the node deletes it
    + confirm   row -> ready; it takes its tag from the one before

A crash between the steps leaves the row in `creating`: nobody was told of it, so `sweep_snapshots` deletes it.
"""

import asyncio
from dataclasses import dataclass, replace

from firebrick.control.platform import Platform
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.control.workflows.snapshot_delete import delete_snapshot
from firebrick.model.errors import AlreadyExists, DeadlineExceeded, Internal, NotFound
from firebrick.model.sandbox import Sandbox
from firebrick.model.snapshot import Snapshot, SnapshotState
from firebrick.model.template import Template
from firebrick.rpc.node_api import NodeSnapshot
from firebrick.store.quotas import quota_check_snapshot
from firebrick.store.snapshots import snapshot_confirm, snapshot_fetch, snapshot_insert, snapshot_mark_deleting
from firebrick.store.templates import template_fetch, template_insert

TAKE_TIMEOUT_S = 120.0


@dataclass(slots=True, kw_only=True)
class SnapshotCreate:
    """`snapshot` is the wish at first and the row as it stands after each step."""

    platform: Platform
    source: Sandbox
    snapshot: Snapshot
    keep_memory: bool = True
    taken: NodeSnapshot | None = None


async def record_snapshot(platform: Platform, snapshot: Snapshot) -> Snapshot:
    """Write the row, and the template that stands for it; as it stands then. Idempotent. Raises LimitExceeded,
    AlreadyExists."""
    async with platform.database.write() as tx:
        if (known := await snapshot_fetch(tx, snapshot.snapshot_id)) is not None:
            return known
        if not snapshot.is_private:
            await quota_check_snapshot(tx, snapshot.team_id, more_bytes=snapshot.disk_bytes)
        template = await template_fetch(tx, snapshot.name or snapshot.template_id)
        if template is None:
            template = Template(
                template_id=snapshot.template_id,
                alias=snapshot.name or snapshot.template_id,
                team_id=snapshot.team_id,
                created_at=snapshot.created_at,
                is_snapshot=True,
            )
            await template_insert(tx, template)
        elif template.team_id != snapshot.team_id:
            raise AlreadyExists(f"The name '{snapshot.name}' is not free. Choose another.")
        snapshot = replace(snapshot, template_id=template.template_id)
        await snapshot_insert(tx, snapshot)
    return snapshot


async def undo_record(platform: Platform, snapshot: Snapshot) -> None:
    async with platform.database.write() as tx:
        await snapshot_mark_deleting(tx, (snapshot.snapshot_id,))
    await delete_snapshot(platform, snapshot)


async def confirmed(platform: Platform, snapshot: Snapshot, taken: NodeSnapshot) -> Snapshot:
    """Write what its node says of it: it is ready. Raises Conflict."""
    snapshot = replace(
        snapshot,
        state=SnapshotState.READY,
        build_id=taken.build_id,
        runtime=taken.runtime,
        keeps_memory=taken.keeps_memory,
        disk_bytes=taken.disk_bytes,
        stored_bytes=taken.stored_bytes,
    )
    async with platform.database.write() as tx:
        await snapshot_confirm(tx, snapshot)
    platform.signals.snapshots.poke()
    return snapshot


async def _record(create: SnapshotCreate) -> None:
    create.snapshot = await record_snapshot(create.platform, create.snapshot)


async def _undo_record(create: SnapshotCreate) -> None:
    await undo_record(create.platform, create.snapshot)


async def _take(create: SnapshotCreate) -> None:
    client = create.platform.nodes.client(create.source.node_id)
    deadline_s = create.platform.config.patient_s(TAKE_TIMEOUT_S)
    try:
        async with asyncio.timeout(deadline_s):
            create.taken = await client.snapshot_sandbox(
                create.source.sandbox_id, create.snapshot.snapshot_id, keep_memory=create.keep_memory
            )
    except TimeoutError as exc:
        raise DeadlineExceeded(f"The snapshot was not taken within {deadline_s:.0f} seconds. Try again.") from exc
    except NotFound as exc:
        raise NotFound(f"Sandbox {create.source.sandbox_id} ended before its snapshot was taken.") from exc


async def _undo_take(create: SnapshotCreate) -> None:
    await create.platform.nodes.client(create.source.node_id).delete_snapshot(create.snapshot.snapshot_id)


async def _confirm(create: SnapshotCreate) -> None:
    if create.taken is None:
        raise Internal("The snapshot was not taken.")
    create.snapshot = await confirmed(create.platform, create.snapshot, create.taken)


STEPS: tuple[Step[SnapshotCreate], ...] = (
    Step(name="record", act=_record, undo=_undo_record),
    Step(name="take", act=_take, undo=_undo_take),
    Step(name="confirm", act=_confirm),
)


async def create_snapshot(create: SnapshotCreate) -> Snapshot:
    """Run the workflow; sandboxes can be created from the snapshot when this returns.

    Raises: NotFound — the sandbox ended. LimitExceeded — the team's disk quota. Unavailable, DeadlineExceeded — its
    node does not answer. Internal, Conflict.
    """
    with create.platform.working(create.snapshot.snapshot_id):
        await run_workflow("snapshot_create", STEPS, create)
    return create.snapshot
