"""Rows of nodes: what each promises at most, and how it looked last."""

from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.ids import BuildId, NodeId
from firebrick.model.machine import RuntimeName
from firebrick.model.node import NodeState, NodeView
from firebrick.store.schema import nodes, reservations


def _view(row: Row[Any]) -> NodeView:
    return NodeView(
        node_id=NodeId(row.node_id),
        # What the operator wishes is not undone by what the node says of itself.
        state=NodeState.DRAINING if row.is_draining and row.state == NodeState.READY.value else NodeState(row.state),
        runtimes=tuple(RuntimeName(name) for name in row.runtimes),
        builds=frozenset(BuildId(build) for build in row.builds),
        millicpu=row.millicpu,
        memory_mib=row.memory_mib,
        disk_mib=row.disk_mib,
        reserved_millicpu=int(row.reserved_millicpu),
        reserved_memory_mib=int(row.reserved_memory_mib),
        reserved_disk_mib=int(row.reserved_disk_mib),
        starting_count=row.starting_count,
        free_slot_count=row.free_slot_count,
    )


async def node_upsert(tx: AsyncConnection, node: NodeView, *, seen_at: datetime) -> None:
    """Write what the node said of itself. Its `reserved_…` are not written: they are sums of reservations."""
    values: dict[str, Any] = {
        "state": node.state.value,
        "runtimes": [runtime.value for runtime in node.runtimes],
        "builds": sorted(node.builds),
        "millicpu": node.millicpu,
        "memory_mib": node.memory_mib,
        "disk_mib": node.disk_mib,
        "starting_count": node.starting_count,
        "free_slot_count": node.free_slot_count,
        "seen_at": seen_at,
    }
    changed = await tx.execute(update(nodes).where(nodes.c.node_id == node.node_id).values(**values))
    if changed.rowcount == 0:
        await tx.execute(insert(nodes).values(node_id=node.node_id, **values))


async def node_set_state(tx: AsyncConnection, node_id: NodeId, state: NodeState) -> None:
    await tx.execute(update(nodes).where(nodes.c.node_id == node_id).values(state=state.value))


async def node_set_draining(tx: AsyncConnection, node_id: NodeId, *, is_draining: bool) -> bool:
    """False when there is no such node."""
    changed = update(nodes).where(nodes.c.node_id == node_id).values(is_draining=is_draining)
    return bool((await tx.execute(changed)).rowcount)


def _views_query() -> Select[Any]:
    names = ("millicpu", "memory_mib", "disk_mib")
    sums = [func.coalesce(func.sum(reservations.c[name]), 0).label(f"reserved_{name}") for name in names]
    reserved = select(reservations.c.node_id, *sums).group_by(reservations.c.node_id).subquery()
    columns = [func.coalesce(reserved.c[f"reserved_{name}"], 0).label(f"reserved_{name}") for name in names]
    return select(nodes, *columns).outerjoin(reserved, reserved.c.node_id == nodes.c.node_id)


_VIEWS = _views_query()
"""Built once: it is read for every create, and building it costs more than running it."""


async def node_list_views(tx: AsyncConnection) -> tuple[NodeView, ...]:
    """Every node with what is reserved on it, as placement wants to see it."""
    return tuple(_view(row) for row in await tx.execute(_VIEWS))
