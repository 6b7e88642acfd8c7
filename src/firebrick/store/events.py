"""Rows of events: what happened to a sandbox and why. Kept longer than the sandbox, at least a day."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.ids import SandboxId, TeamId
from firebrick.store.schema import events


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxHappening:
    """`kind` is started, ending, ended, create_failed and the like; `reason` is an end reason, an error's code or
    empty. `actor` is who wanted it; `facts` holds figures (times in ms, a reason for each node)."""

    sandbox_id: SandboxId
    team_id: TeamId
    at: datetime
    kind: str
    reason: str = ""
    detail: str = ""
    actor: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


async def event_insert(tx: AsyncConnection, happening: SandboxHappening) -> None:
    await tx.execute(
        insert(events).values(
            sandbox_id=happening.sandbox_id,
            team_id=happening.team_id,
            at=happening.at,
            kind=happening.kind,
            reason=happening.reason,
            detail=happening.detail,
            actor=happening.actor,
            facts=dict(happening.facts) or None,
        )
    )


async def event_list(tx: AsyncConnection, team_id: TeamId, sandbox_id: SandboxId) -> tuple[SandboxHappening, ...]:
    """Oldest first; empty for another team's sandbox, whose rows are not even read."""
    query = select(events).where(events.c.sandbox_id == sandbox_id, events.c.team_id == team_id)
    return tuple(_happening(row) for row in await tx.execute(query.order_by(events.c.event_id)))


async def event_list_of_team(
    tx: AsyncConnection, team_id: TeamId, kinds: Iterable[str], *, limit: int
) -> tuple[SandboxHappening, ...]:
    """The team's latest happenings of these kinds, newest first."""
    query = select(events).where(events.c.team_id == team_id, events.c.kind.in_(list(kinds)))
    newest = query.order_by(events.c.event_id.desc()).limit(limit)
    return tuple(_happening(row) for row in await tx.execute(newest))


def _happening(row: Row[Any]) -> SandboxHappening:
    return SandboxHappening(
        sandbox_id=SandboxId(row.sandbox_id),
        team_id=TeamId(row.team_id),
        at=row.at,
        kind=row.kind,
        reason=row.reason,
        detail=row.detail,
        actor=row.actor,
        facts=row.facts or {},
    )


async def event_delete_before(tx: AsyncConnection, before: datetime) -> None:
    await tx.execute(delete(events).where(events.c.at < before))
