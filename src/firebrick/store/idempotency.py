"""Rows of idempotency keys: which sandbox a repeated create already made."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.errors import AlreadyExists
from firebrick.model.ids import SandboxId, TeamId
from firebrick.store.schema import idempotency_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyRecord:
    team_id: TeamId
    key: str
    body_hash: str
    sandbox_id: SandboxId
    created_at: datetime


async def idempotency_insert(tx: AsyncConnection, record: IdempotencyRecord) -> None:
    """Raises AlreadyExists when another create claimed the key first; the transaction is then of no more use."""
    values = {
        "team_id": record.team_id,
        "key": record.key,
        "body_hash": record.body_hash,
        "sandbox_id": record.sandbox_id,
        "created_at": record.created_at,
    }
    try:
        await tx.execute(insert(idempotency_keys).values(**values))
    except IntegrityError as exc:
        raise AlreadyExists("A create with this Idempotency-Key is under way.") from exc


async def idempotency_fetch(tx: AsyncConnection, team_id: TeamId, key: str) -> IdempotencyRecord | None:
    table = idempotency_keys
    row = (await tx.execute(select(table).where(table.c.team_id == team_id, table.c.key == key))).one_or_none()
    if row is None:
        return None
    return IdempotencyRecord(
        team_id=TeamId(row.team_id),
        key=row.key,
        body_hash=row.body_hash,
        sandbox_id=SandboxId(row.sandbox_id),
        created_at=row.created_at,
    )


async def idempotency_delete_of(tx: AsyncConnection, sandbox_id: SandboxId) -> None:
    """Forget the key of a create that failed, so that it may be tried again. Idempotent."""
    await tx.execute(delete(idempotency_keys).where(idempotency_keys.c.sandbox_id == sandbox_id))


async def idempotency_delete_before(tx: AsyncConnection, before: datetime) -> None:
    await tx.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at < before))
