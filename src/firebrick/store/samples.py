"""Rows of samples: how much each sandbox used, and how busy each team was. Bounded by age and by thinning."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Row, delete, func, insert, or_, select, type_coerce
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.sandbox import SandboxState
from firebrick.store.schema import events, sandboxes, team_samples, usage_samples

FULL = timedelta(hours=1)
"""Younger samples are kept as they were taken."""
THINNED_US = 60_000_000
THINNED_KEPT_US = ((usage_samples, 5_000_000), (team_samples, 15_000_000))
"""Older ones only if they fall into the first seconds of a minute, as many as lie between two samples: one a minute."""
MOST_POINTS = 2_500
"""Most that one question is answered with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSample:
    """`cpu_used_pct` is of one core."""

    sandbox_id: SandboxId
    at: datetime
    cpu_used_pct: float
    memory_bytes: int
    memory_limit_bytes: int
    disk_bytes: int
    disk_limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamSample:
    """`start_rate` is in sandboxes per second since the sample before."""

    team_id: TeamId
    at: datetime
    running_count: int
    start_rate: float


def _usage(row: Row[Any]) -> UsageSample:
    return UsageSample(
        sandbox_id=SandboxId(row.sandbox_id),
        at=row.at,
        cpu_used_pct=row.cpu_used_pct,
        memory_bytes=row.memory_bytes,
        memory_limit_bytes=row.memory_limit_bytes,
        disk_bytes=row.disk_bytes,
        disk_limit_bytes=row.disk_limit_bytes,
    )


async def usage_insert(tx: AsyncConnection, samples: Iterable[UsageSample]) -> None:
    rows = [
        {
            "sandbox_id": item.sandbox_id,
            "at": item.at,
            "cpu_used_pct": item.cpu_used_pct,
            "memory_bytes": item.memory_bytes,
            "memory_limit_bytes": item.memory_limit_bytes,
            "disk_bytes": item.disk_bytes,
            "disk_limit_bytes": item.disk_limit_bytes,
        }
        for item in samples
    ]
    if rows:
        await tx.execute(insert(usage_samples), rows)


async def usage_list(
    tx: AsyncConnection, sandbox_id: SandboxId, *, start: datetime | None, end: datetime | None
) -> tuple[UsageSample, ...]:
    """Those in [start, end], oldest first; of more than MOST_POINTS the newest."""
    query = select(usage_samples).where(usage_samples.c.sandbox_id == sandbox_id)
    if start is not None:
        query = query.where(usage_samples.c.at >= start)
    if end is not None:
        query = query.where(usage_samples.c.at <= end)
    rows = (await tx.execute(query.order_by(usage_samples.c.at.desc()).limit(MOST_POINTS))).all()
    return tuple(_usage(row) for row in reversed(rows))


async def team_sample_insert(tx: AsyncConnection, samples: Iterable[TeamSample]) -> None:
    rows = [
        {"team_id": item.team_id, "at": item.at, "running_count": item.running_count, "start_rate": item.start_rate}
        for item in samples
    ]
    if rows:
        await tx.execute(insert(team_samples), rows)


async def team_sample_list(
    tx: AsyncConnection, team_id: TeamId, *, start: datetime, end: datetime
) -> tuple[TeamSample, ...]:
    """Those in [start, end], oldest first; of more than MOST_POINTS the newest."""
    table = team_samples
    query = select(table).where(table.c.team_id == team_id, table.c.at >= start, table.c.at <= end)
    rows = (await tx.execute(query.order_by(table.c.at.desc()).limit(MOST_POINTS))).all()
    return tuple(
        TeamSample(team_id=TeamId(row.team_id), at=row.at, running_count=row.running_count, start_rate=row.start_rate)
        for row in reversed(rows)
    )


async def team_count_running(tx: AsyncConnection) -> dict[TeamId, int]:
    query = (
        select(sandboxes.c.team_id, func.count())
        .where(sandboxes.c.state == SandboxState.RUNNING.value)
        .group_by(sandboxes.c.team_id)
    )
    return {TeamId(row[0]): int(row[1]) for row in await tx.execute(query)}


async def team_count_started(tx: AsyncConnection, after: datetime, until: datetime) -> dict[TeamId, int]:
    """Creates and resumes of each team in [after, until)."""
    query = (
        select(events.c.team_id, func.count())
        .where(or_(events.c.kind == "started", events.c.kind == "resumed"), events.c.at >= after, events.c.at < until)
        .group_by(events.c.team_id)
    )
    return {TeamId(row[0]): int(row[1]) for row in await tx.execute(query)}


async def sample_thin(tx: AsyncConnection, *, now: datetime, kept: timedelta) -> None:
    """Forget what is older than `kept`, and most of what is older than FULL."""
    for table, kept_us in THINNED_KEPT_US:
        await tx.execute(delete(table).where(table.c.at < now - kept))
        within_minute_us = type_coerce(table.c.at, BigInteger) % THINNED_US
        await tx.execute(delete(table).where(table.c.at < now - FULL, within_minute_us >= kept_us))
