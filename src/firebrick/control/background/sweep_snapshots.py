"""Delete what is marked for it, what no process takes any more, and what lies on a node without a row.

Which chunks of a deleted snapshot are needed by no other is the node's own affair: it collects them.
"""

from collections.abc import Mapping
from datetime import timedelta

from firebrick.control.platform import Platform
from firebrick.control.workflows.snapshot_delete import delete_snapshot
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError
from firebrick.model.ids import NodeId, SnapshotId
from firebrick.model.snapshot import Snapshot, SnapshotState
from firebrick.store.snapshots import (
    snapshot_list_known,
    snapshot_list_unfinished,
    snapshot_mark_deleting,
    snapshot_set_stored,
    template_is_used,
)

ROUND_S = 5.0
ABANDONED = timedelta(minutes=30)
"""A fork into a hundred takes minutes; none takes this long."""
ORPHAN_ROUND_COUNT = 6
"""Rounds between two looks at what the nodes have."""

log = get_log("control.snapshots")


class SweepSnapshots:
    """`is_only_one`: no other control plane shares the store, so a snapshot that nobody here takes is abandoned. With
    others it is when it is too old to be anybody's work."""

    def __init__(self, platform: Platform, *, is_only_one: bool) -> None:
        self._platform = platform
        self._is_only_one = is_only_one
        self._round_count = 0
        self._sized: frozenset[SnapshotId] = frozenset()
        self._orphans: dict[NodeId, frozenset[SnapshotId]] = {}

    async def round(self) -> float:
        platform = self._platform
        # NOTE: looked at before the rows are read: what ends between the two is finished, and only deleted if marked.
        at_work = frozenset(platform.at_work)
        async with platform.database.read() as tx:
            rows = await snapshot_list_unfinished(tx)
        for row in rows:
            if row.snapshot_id in at_work or row.snapshot_id in platform.at_work:
                continue
            if row.state is SnapshotState.DELETING:
                await self._delete(row)
            elif self._is_only_one or platform.clock.now() - row.created_at > ABANDONED:
                async with platform.database.write() as tx:
                    await snapshot_mark_deleting(tx, (row.snapshot_id,))
                await self._delete(row)
        if self._round_count % ORPHAN_ROUND_COUNT == 0:
            for node_id in platform.nodes.clients:
                await self._look_for_orphans(node_id)
        self._round_count += 1
        return ROUND_S

    async def _delete(self, row: Snapshot) -> None:
        async with self._platform.database.read() as tx:
            if await template_is_used(tx, row.template_id):
                return
        try:
            await delete_snapshot(self._platform, row)
        except FirebrickError as exc:
            log.warning("snapshot.delete_waits", snapshot_id=row.snapshot_id, error=exc.message)

    async def _look_for_orphans(self, node_id: NodeId) -> None:
        client = self._platform.nodes.client(node_id)
        try:
            items = await client.list_snapshots()
            found = frozenset(item.snapshot_id for item in items)
            await self._note_sizes({item.snapshot_id: item.stored_bytes for item in items})
            # NOTE: read after: every snapshot on a node had its row before it was taken.
            async with self._platform.database.read() as tx:
                orphans = found - await snapshot_list_known(tx, found)
            for snapshot_id in orphans & self._orphans.get(node_id, frozenset()):
                log.warning("snapshot.orphan_deleted", snapshot_id=snapshot_id, node_id=node_id)
                await client.delete_snapshot(snapshot_id)
        except FirebrickError as exc:
            # Node health is watched by `sync_nodes`.
            log.debug("snapshot.look_failed", node_id=node_id, error=exc.message)
            return
        self._orphans[node_id] = orphans

    async def _note_sizes(self, sizes: Mapping[SnapshotId, int | None]) -> None:
        fresh = {item: size for item, size in sizes.items() if size is not None and item not in self._sized}
        if fresh:
            async with self._platform.database.write() as tx:
                await snapshot_set_stored(tx, fresh)
        self._sized = frozenset(item for item, size in sizes.items() if size is not None)
