"""Delete a snapshot.

    + mark     row -> deleting: nothing starts from it any more (done by whoever decides)
    + remove   the node deletes it; chunks that no other snapshot needs go with the next collection
    + forget   its row, and the template that stood for it

It goes forward only; `sweep_snapshots` repeats what was cut off.
"""

import asyncio
from dataclasses import dataclass

from firebrick.control.platform import Platform
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.model.errors import NotFound, Unavailable
from firebrick.model.snapshot import Snapshot
from firebrick.store.snapshots import snapshot_delete

REMOVE_TIMEOUT_S = 20.0


@dataclass(slots=True, kw_only=True)
class SnapshotDelete:
    platform: Platform
    snapshot: Snapshot


async def _remove(delete: SnapshotDelete) -> None:
    try:
        async with asyncio.timeout(delete.platform.config.patient_s(REMOVE_TIMEOUT_S)):
            client = delete.platform.nodes.client(delete.snapshot.node_id)
            await client.delete_snapshot(delete.snapshot.snapshot_id)
    except NotFound:
        return
    except TimeoutError as exc:
        raise Unavailable("The node did not delete a snapshot in time.") from exc


async def _forget(delete: SnapshotDelete) -> None:
    async with delete.platform.database.write() as tx:
        await snapshot_delete(tx, delete.snapshot.snapshot_id)


STEPS: tuple[Step[SnapshotDelete], ...] = (Step(name="remove", act=_remove), Step(name="forget", act=_forget))


async def delete_snapshot(platform: Platform, snapshot: Snapshot) -> None:
    """Finish the deletion of one that is marked. Raises Unavailable — its node does not answer; try again."""
    await run_workflow("snapshot_delete", STEPS, SnapshotDelete(platform=platform, snapshot=snapshot))
