"""Make a snapshot of what another instance exported.

    + record    row `creating` that counts what its files hold, and its template    - row `deleting`, then gone
    + receive   the node writes and proves its files, as they come                  - the node deletes it
    + confirm   row -> ready; it takes its tag from the one before

A crash between the steps, and an archive that breaks off, leave the row in `creating`: `sweep_snapshots` deletes it.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from firebrick.control.platform import Platform
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.control.workflows.snapshot_create import confirmed, record_snapshot, undo_record
from firebrick.model.errors import Internal
from firebrick.model.snapshot import Snapshot
from firebrick.rpc.node_api import ImportedSnapshot, ImportSnapshot


@dataclass(slots=True, kw_only=True)
class SnapshotImport:
    """`snapshot` is the wish at first and the row as it stands after each step. `parts`: for its node."""

    platform: Platform
    snapshot: Snapshot
    wanted: ImportSnapshot
    parts: AsyncIterator[bytes]
    taken: ImportedSnapshot | None = None


async def _record(create: SnapshotImport) -> None:
    create.snapshot = await record_snapshot(create.platform, create.snapshot)


async def _undo_record(create: SnapshotImport) -> None:
    await undo_record(create.platform, create.snapshot)


async def _receive(create: SnapshotImport) -> None:
    client = create.platform.nodes.client(create.snapshot.node_id)
    create.taken = await client.import_snapshot(create.wanted, create.parts)


async def _undo_receive(create: SnapshotImport) -> None:
    await create.platform.nodes.client(create.snapshot.node_id).delete_snapshot(create.snapshot.snapshot_id)


async def _confirm(create: SnapshotImport) -> None:
    if create.taken is None:
        raise Internal("The snapshot was not taken in.")
    create.snapshot = await confirmed(create.platform, create.snapshot, create.taken.snapshot)


STEPS: tuple[Step[SnapshotImport], ...] = (
    Step(name="record", act=_record, undo=_undo_record),
    Step(name="receive", act=_receive, undo=_undo_receive),
    Step(name="confirm", act=_confirm),
)


async def import_snapshot(create: SnapshotImport) -> tuple[Snapshot, str]:
    """Run the workflow; sandboxes can be created from the snapshot when this returns. Beside it why nothing goes on
    from its memory here; "": it has none, or it does.

    Raises: Invalid — it is damaged or cut off. LimitExceeded — the team's disk quota. NoCapacity — its node's disk.
    Unavailable — its node does not answer. AlreadyExists, Internal, Conflict.
    """
    with create.platform.working(create.snapshot.snapshot_id):
        await run_workflow("snapshot_import", STEPS, create)
    return create.snapshot, "" if create.taken is None else create.taken.memory_refusal
