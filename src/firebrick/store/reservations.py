"""Rows of reservations: what is promised to a sandbox on a node, from before its start until after its end."""

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.errors import Conflict, NoCapacity
from firebrick.model.ids import NodeId, SandboxId
from firebrick.model.machine import Limits
from firebrick.placement.fit import Room, lacks
from firebrick.store.schema import nodes, reservations

_SUMS = select(
    *(func.coalesce(func.sum(reservations.c[name]), 0) for name in ("millicpu", "memory_mib", "disk_mib"))
).where(reservations.c.node_id == bindparam("wanted_id"))


async def _check_room(tx: AsyncConnection, node_id: NodeId, limits: Limits) -> None:
    row = (await tx.execute(select(nodes).where(nodes.c.node_id == node_id).with_for_update())).one_or_none()
    if row is None:
        raise Conflict("The chosen node no longer exists. Try again.")
    used = (await tx.execute(_SUMS, {"wanted_id": node_id})).one()
    room = Room(
        millicpu=row.millicpu,
        memory_mib=row.memory_mib,
        disk_mib=row.disk_mib,
        reserved_millicpu=int(used[0]),
        reserved_memory_mib=int(used[1]),
        reserved_disk_mib=int(used[2]),
    )
    lack = lacks(limits, room)
    if lack is not None:
        raise NoCapacity(f"No node can take the sandbox now: {lack}. Kill sandboxes that are not needed or try again.")


async def reservation_insert(tx: AsyncConnection, *, sandbox_id: SandboxId, node_id: NodeId, limits: Limits) -> None:
    """Promise `limits` on the node if they still fit; the node stays locked until the transaction ends.

    Raises:
        NoCapacity: what was free when the node was chosen has been taken since. Place again.
        Conflict: the node is gone.
    """
    await _check_room(tx, node_id, limits)
    await tx.execute(
        insert(reservations).values(
            sandbox_id=sandbox_id,
            node_id=node_id,
            millicpu=limits.millicpu,
            memory_mib=limits.memory_mib,
            disk_mib=limits.disk_mib,
        )
    )


async def reservation_shrink(tx: AsyncConnection, sandbox_id: SandboxId) -> None:
    """Keep the disk only: the sandbox is paused, or its disk lies in the grace bin. Idempotent."""
    await tx.execute(
        update(reservations).where(reservations.c.sandbox_id == sandbox_id).values(millicpu=0, memory_mib=0)
    )


async def reservation_grow(tx: AsyncConnection, *, sandbox_id: SandboxId, node_id: NodeId, limits: Limits) -> None:
    """Promise CPU and memory again beside the disk that is held; the node stays locked until the transaction ends.

    Raises: NoCapacity — they are taken. Conflict — the node or the reservation is gone.
    """
    await _check_room(tx, node_id, replace(limits, disk_mib=0))
    changed = await tx.execute(
        update(reservations)
        .where(reservations.c.sandbox_id == sandbox_id)
        .values(millicpu=limits.millicpu, memory_mib=limits.memory_mib, saved_mib=0)
    )
    if changed.rowcount == 0:
        raise Conflict(f"Sandbox {sandbox_id} has no reservation any more. Try again.")


async def reservation_set_saved(tx: AsyncConnection, sizes_mib: Mapping[SandboxId, int]) -> None:
    """Note what the saved memory of each takes on its node's disk. Idempotent; who has no reservation is left out."""
    for sandbox_id, saved_mib in sizes_mib.items():
        await tx.execute(
            update(reservations).where(reservations.c.sandbox_id == sandbox_id).values(saved_mib=saved_mib)
        )  # fmt: skip


async def reservation_delete(tx: AsyncConnection, sandbox_id: SandboxId) -> None:
    """Idempotent."""
    await tx.execute(delete(reservations).where(reservations.c.sandbox_id == sandbox_id))


async def reservation_list(tx: AsyncConnection) -> tuple[tuple[SandboxId, NodeId], ...]:
    query = select(reservations.c.sandbox_id, reservations.c.node_id)
    return tuple((SandboxId(row.sandbox_id), NodeId(row.node_id)) for row in await tx.execute(query))
