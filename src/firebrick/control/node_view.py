"""The nodes as the operator sees them, and the wish that one takes no more sandboxes."""

from dataclasses import dataclass
from datetime import datetime

from firebrick.control.audit import AuditService
from firebrick.control.nodes import NodeStatus
from firebrick.control.platform import Platform
from firebrick.model.errors import NotFound
from firebrick.model.ids import NodeId
from firebrick.model.node import NodeState, NodeView
from firebrick.store.nodes import node_list_views, node_set_draining
from firebrick.store.sandboxes import sandbox_count_by_node


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """`sandbox_count` is of sandboxes that hold a machine there. `error` is empty while the node answers."""

    view: NodeView
    version: str
    seen_at: datetime | None
    error: str
    sandbox_count: int


class NodeService:
    def __init__(self, platform: Platform, audit: AuditService) -> None:
        self._platform = platform
        self._audit = audit

    async def list_all(self) -> tuple[NodeReport, ...]:
        async with self._platform.database.read() as tx:
            views = await node_list_views(tx)
            counts = await sandbox_count_by_node(tx)
        statuses = self._platform.nodes.statuses
        unlinked = NodeStatus(node_id=NodeId(""), state=NodeState.LOST, error="this control plane has no link to it")
        return tuple(
            NodeReport(
                view=view,
                version=status.version,
                seen_at=status.seen_at,
                error=status.error,
                sandbox_count=counts.get(view.node_id, 0),
            )
            for view in views
            for status in (statuses.get(view.node_id, unlinked),)
        )

    async def fetch(self, node_id: NodeId) -> NodeReport:
        """Raises NotFound."""
        found = next((report for report in await self.list_all() if report.view.node_id == node_id), None)
        if found is None:
            raise _no_node()
        return found

    async def set_draining(self, node_id: NodeId, *, is_draining: bool) -> None:
        """A draining node gets no new sandboxes; those that it has go on. Raises NotFound."""
        async with self._platform.database.write() as tx:
            if not await node_set_draining(tx, node_id, is_draining=is_draining):
                raise _no_node()
            action = "node.drain" if is_draining else "node.undrain"
            await self._audit.note(tx, action, object_id=node_id)


def _no_node() -> NotFound:
    return NotFound("There is no such node.")
