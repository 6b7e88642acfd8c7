"""Rows of events: what happened to a sandbox and why. Kept longer than the sandbox, at least a day."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.ids import SandboxId, TeamId
from firebrick.store.schema import events


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxHappening:
    """`kind` is started, ending or ended; `reason` is an end reason or empty."""

    sandbox_id: SandboxId
    team_id: TeamId
    at: datetime
    kind: str
    reason: str = ""
    detail: str = ""


async def event_insert(tx: AsyncConnection, happening: SandboxHappening) -> None:
    await tx.execute(
        insert(events).values(
            sandbox_id=happening.sandbox_id,
            team_id=happening.team_id,
            at=happening.at,
            kind=happening.kind,
            reason=happening.reason,
            detail=happening.detail,
        )
    )


async def event_list(tx: AsyncConnection, sandbox_id: SandboxId) -> tuple[SandboxHappening, ...]:
    """Oldest first."""
    query = select(events).where(events.c.sandbox_id == sandbox_id).order_by(events.c.event_id)
    return tuple(
        SandboxHappening(
            sandbox_id=SandboxId(row.sandbox_id),
            team_id=TeamId(row.team_id),
            at=row.at,
            kind=row.kind,
            reason=row.reason,
            detail=row.detail,
        )
        for row in await tx.execute(query)
    )


async def event_delete_before(tx: AsyncConnection, before: datetime) -> None:
    await tx.execute(delete(events).where(events.c.at < before))
