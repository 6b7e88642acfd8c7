"""The list of a team's sandboxes, page by page.

A page starts after a key (start time, id), not at an offset, so it stays right while sandboxes come and go.
Metadata is compared here rather than in SQL: the two databases spell JSON differently, and a team's live
sandboxes are few (its quota bounds them).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, String, func, literal, or_, select, true, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.store.sandboxes import sandbox_from_row
from firebrick.store.schema import UtcTime, sandboxes


@dataclass(frozen=True, slots=True, kw_only=True)
class PageKey:
    """The last sandbox of the page before."""

    started_at: datetime
    sandbox_id: SandboxId


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxFilter:
    """What to list. `metadata`: every pair must be equal. `started_after` is inclusive."""

    team_id: TeamId
    states: frozenset[SandboxState] = frozenset({SandboxState.RUNNING, SandboxState.PAUSED})
    template: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    started_after: datetime | None = None
    newest_first: bool = True
    after: PageKey | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPage:
    """`running_count` is of all running ones that match, on every page."""

    sandboxes: tuple[Sandbox, ...]
    has_more: bool
    running_count: int


async def sandbox_list_page(tx: AsyncConnection, wanted: SandboxFilter) -> SandboxPage:
    if wanted.metadata:
        return await _page_by_metadata(tx, wanted)
    conditions = _conditions(wanted)
    count = select(func.count()).where(*conditions, sandboxes.c.state == SandboxState.RUNNING.value)
    query = select(sandboxes).where(*conditions, *_states(wanted), *_after(wanted))
    rows = (await tx.execute(query.order_by(*_order(wanted)).limit(wanted.limit + 1))).all()
    running = (await tx.execute(count.select_from(sandboxes))).scalar_one()
    return SandboxPage(
        sandboxes=tuple(sandbox_from_row(row) for row in rows[: wanted.limit]),
        has_more=len(rows) > wanted.limit,
        running_count=int(running),
    )


async def _page_by_metadata(tx: AsyncConnection, wanted: SandboxFilter) -> SandboxPage:
    query = select(sandboxes).where(*_conditions(wanted)).order_by(*_order(wanted))
    matching = [row for row in await tx.execute(query) if _has_all(row.metadata, wanted.metadata)]
    states = {state.value for state in wanted.states}
    ahead = [row for row in matching if row.state in states and _is_after(row.started_at, row.sandbox_id, wanted)]
    return SandboxPage(
        sandboxes=tuple(sandbox_from_row(row) for row in ahead[: wanted.limit]),
        has_more=len(ahead) > wanted.limit,
        running_count=sum(row.state == SandboxState.RUNNING.value for row in matching),
    )


def _conditions(wanted: SandboxFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [sandboxes.c.team_id == wanted.team_id, sandboxes.c.is_listed == true()]
    if wanted.template is not None:
        named = (sandboxes.c.template_id == wanted.template, sandboxes.c.template_alias == wanted.template)
        conditions.append(or_(*named))
    if wanted.started_after is not None:
        conditions.append(sandboxes.c.started_at >= wanted.started_after)
    return conditions


def _states(wanted: SandboxFilter) -> list[ColumnElement[bool]]:
    return [sandboxes.c.state.in_(sorted(state.value for state in wanted.states))]


def _after(wanted: SandboxFilter) -> list[ColumnElement[bool]]:
    if wanted.after is None:
        return []
    key = tuple_(sandboxes.c.started_at, sandboxes.c.sandbox_id)
    last = tuple_(literal(wanted.after.started_at, UtcTime), literal(wanted.after.sandbox_id, String))
    return [key < last if wanted.newest_first else key > last]


def _is_after(started_at: datetime, sandbox_id: str, wanted: SandboxFilter) -> bool:
    if wanted.after is None:
        return True
    key, last = (started_at, sandbox_id), (wanted.after.started_at, str(wanted.after.sandbox_id))
    return key < last if wanted.newest_first else key > last


def _order(wanted: SandboxFilter) -> list[ColumnElement[Any]]:
    columns: list[ColumnElement[Any]] = [sandboxes.c.started_at, sandboxes.c.sandbox_id]
    return [column.desc() if wanted.newest_first else column.asc() for column in columns]


def _has_all(metadata: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(metadata.get(key) == value for key, value in wanted.items())
