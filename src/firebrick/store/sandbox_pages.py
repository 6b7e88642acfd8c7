"""The list of a team's sandboxes, page by page.

A page starts after a key (start time, id), not at an offset, so it stays right while sandboxes come and go.
Metadata is compared here rather than in SQL: the two databases spell JSON differently, and a team's live
sandboxes are few (its quota bounds them).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, FromClause, String, func, literal, or_, select, true, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.store.sandboxes import sandbox_from_row
from firebrick.store.schema import UtcTime, sandboxes

_COUNTED = sandboxes.alias("counted")


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


async def sandbox_list_page(
    tx: AsyncConnection, wanted: SandboxFilter, known: Mapping[SandboxId, Sandbox] | None = None
) -> SandboxPage:
    """One page. A sandbox in `known` whose generation is still the stored one is not read again: turning rows into
    objects is most of the cost of a page, and between two lists few rows change."""
    if wanted.metadata:
        return await _page_by_metadata(tx, wanted)
    conditions = _conditions(wanted)
    count = select(func.count()).select_from(_COUNTED)
    count = count.where(*_conditions(wanted, _COUNTED), _COUNTED.c.state == SandboxState.RUNNING.value)
    query = select(sandboxes.c.sandbox_id, sandboxes.c.generation, count.scalar_subquery())
    query = query.where(*conditions, *_states(wanted), *_after(wanted))
    rows = (await tx.execute(query.order_by(*_order(wanted)).limit(wanted.limit + 1))).all()
    running = rows[0][2] if rows else (await tx.execute(count)).scalar_one()
    keys = [(SandboxId(row[0]), row[1]) for row in rows[: wanted.limit]]
    return SandboxPage(
        sandboxes=await _read_all(tx, keys, known or {}),
        has_more=len(rows) > wanted.limit,
        running_count=int(running),
    )


async def _read_all(
    tx: AsyncConnection, keys: list[tuple[SandboxId, int]], known: Mapping[SandboxId, Sandbox]
) -> tuple[Sandbox, ...]:
    """Those sandboxes in that order; one that ended between the two statements is given as it ended."""
    found: dict[SandboxId, Sandbox] = {}
    for sandbox_id, generation in keys:
        sandbox = known.get(sandbox_id)
        if sandbox is not None and sandbox.generation == generation:
            found[sandbox_id] = sandbox
    missing = [sandbox_id for sandbox_id, _ in keys if sandbox_id not in found]
    if missing:
        query = select(sandboxes).where(sandboxes.c.sandbox_id.in_(missing))
        for row in await tx.execute(query):
            sandbox = sandbox_from_row(row)
            found[sandbox.sandbox_id] = sandbox
    return tuple(found[sandbox_id] for sandbox_id, _ in keys if sandbox_id in found)


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


def _conditions(wanted: SandboxFilter, table: FromClause = sandboxes) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [table.c.team_id == wanted.team_id, table.c.is_listed == true()]
    if wanted.template is not None:
        conditions.append(or_(table.c.template_id == wanted.template, table.c.template_alias == wanted.template))
    if wanted.started_after is not None:
        conditions.append(table.c.started_at >= wanted.started_after)
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
