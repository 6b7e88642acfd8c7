"""Rows of leases: which of the control planes that share this store does what only one of them should do."""

from datetime import datetime

from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.errors import Conflict
from firebrick.store.schema import leases


async def lease_take(tx: AsyncConnection, name: str, holder: str, *, now: datetime, until: datetime) -> bool:
    """Take what is free or has run out, or prolong one's own; False when another holds it.

    Raises Conflict — another was first to take it ever; the transaction is then of no more use.
    """
    mine_or_free = or_(leases.c.holder == holder, leases.c.until <= now)
    changed = await tx.execute(
        update(leases).where(leases.c.name == name, mine_or_free).values(holder=holder, until=until)
    )
    if changed.rowcount:
        return True
    if (await tx.execute(select(leases.c.name).where(leases.c.name == name))).first() is not None:
        return False
    try:
        await tx.execute(insert(leases).values(name=name, holder=holder, until=until))
    except IntegrityError as exc:
        raise Conflict(f"Another took the lease {name} at the same moment.") from exc
    return True
