"""The nodes that this control plane talks to, and what each said of itself last."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from firebrick.clock import Clock
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError, Unavailable
from firebrick.model.ids import NodeId
from firebrick.model.node import NodeState, NodeView
from firebrick.rpc.node_api import NodeClient, NodeDescription
from firebrick.store.database import Database
from firebrick.store.nodes import node_list_views, node_set_state, node_upsert

DESCRIBE_TIMEOUT_S = 3.0
WRITE_EVERY_S = 10.0
"""An unchanged description is written again this often, so that `seen_at` stays true without a write a round."""

log = get_log("control.nodes")


@dataclass(slots=True, kw_only=True)
class NodeStatus:
    """For operators. `error` is empty while the node answers."""

    node_id: NodeId
    state: NodeState
    seen_at: datetime | None = None
    error: str = ""
    warm_count: int = 0
    warm_wanted_count: int = 0
    version: str = ""


class NodeDirectory:
    def __init__(
        self, clients: Mapping[NodeId, NodeClient], database: Database, clock: Clock, *, patience: float = 1.0
    ) -> None:
        self._clients = dict(clients)
        self._database = database
        self._clock = clock
        self._patience = patience
        self._written: dict[NodeId, NodeView] = {}
        self.statuses = {node_id: NodeStatus(node_id=node_id, state=NodeState.JOINING) for node_id in clients}

    @property
    def clients(self) -> Mapping[NodeId, NodeClient]:
        return self._clients

    def client(self, node_id: NodeId | None) -> NodeClient:
        """Raises Unavailable for a node that this control plane does not know (any more)."""
        client = None if node_id is None else self._clients.get(node_id)
        if client is None:
            raise Unavailable("The sandbox's node is not known here at the moment.", detail=f"node {node_id}")
        return client

    async def list_views(self) -> Sequence[NodeView]:
        """What placement may know, from one moment of the store."""
        async with self._database.read() as tx:
            return await node_list_views(tx)

    async def refresh(self) -> None:
        """Ask every node what it is and write it down. A node that does not answer becomes unhealthy; its
        sandboxes live on, so nothing else is concluded from its silence."""
        async with asyncio.TaskGroup() as group:
            for node_id in self._clients:
                group.create_task(self.refresh_one(node_id))

    async def refresh_one(self, node_id: NodeId) -> bool:
        """True when the node answered."""
        status = self.statuses[node_id]
        try:
            async with asyncio.timeout(DESCRIBE_TIMEOUT_S * self._patience):
                description = await self._clients[node_id].describe()
            if description.node_id != node_id:
                raise Unavailable(f"Another node answers in its place: {description.node_id}")
        except (FirebrickError, TimeoutError) as exc:
            await self._mark_unhealthy(status, str(exc) or "it did not answer in time")
            return False
        if status.state is not NodeState.READY:
            log.info("node.ready", node_id=node_id, version=description.version)
        await self._write(description, status)
        status.state, status.error = NodeState.READY, ""
        status.warm_count, status.version = description.warm_count, description.version
        status.warm_wanted_count = description.warm_wanted_count
        return True

    async def _mark_unhealthy(self, status: NodeStatus, error: str) -> None:
        if status.state is not NodeState.UNHEALTHY:
            log.warning("node.unhealthy", node_id=status.node_id, error=error)
            async with self._database.write() as tx:
                await node_set_state(tx, status.node_id, NodeState.UNHEALTHY)
        self._written.pop(status.node_id, None)
        status.state, status.error = NodeState.UNHEALTHY, error

    async def _write(self, description: NodeDescription, status: NodeStatus) -> None:
        now = self._clock.now()
        view = _view(description)
        is_fresh = status.seen_at is not None and (now - status.seen_at).total_seconds() < WRITE_EVERY_S
        if self._written.get(view.node_id) == view and is_fresh:
            return
        async with self._database.write() as tx:
            await node_upsert(tx, view, seen_at=now)
        self._written[view.node_id] = view
        status.seen_at = now


def _view(description: NodeDescription) -> NodeView:
    return NodeView(
        node_id=description.node_id,
        state=NodeState.READY,
        runtimes=description.runtimes,
        builds=description.builds,
        millicpu=description.millicpu,
        memory_mib=description.memory_mib,
        disk_mib=description.disk_mib,
        reserved_millicpu=0,
        reserved_memory_mib=0,
        reserved_disk_mib=0,
        starting_count=description.starting_count,
        free_slot_count=description.free_slot_count,
    )
