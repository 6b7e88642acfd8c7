"""The list of a team's sandboxes, page by page.

A page starts after a key (start time, id), not at an offset, so it stays right while sandboxes come and go.
Metadata is compared here rather than in SQL: the two databases spell JSON differently, and a team's live
sandboxes are few (its quota bounds them) and mostly known already.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    String,
    bindparam,
    func,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.lifecycle.sandbox_machine import is_visible
from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.store.sandboxes import sandbox_from_row
from firebrick.store.schema import UtcTime, sandboxes

MOST_COMPARED = 20_000
"""Sandboxes of one team that are compared by metadata; far above any quota."""
_COUNTED = sandboxes.alias("counted")
_VISIBLE = frozenset(state for state in SandboxState if is_visible(state))


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
    """`running_count` is of all running ones that match, on every page; `read` are all that were looked at."""

    sandboxes: tuple[Sandbox, ...]
    has_more: bool
    running_count: int
    read: tuple[Sandbox, ...]


async def sandbox_list_page(
    tx: AsyncConnection, wanted: SandboxFilter, known: Mapping[SandboxId, Sandbox] | None = None
) -> SandboxPage:
    """One page. A sandbox in `known` whose generation is still the stored one is not read again: turning rows into
    objects is most of the cost of a page, and between two lists few rows change."""
    if wanted.metadata:
        return await _page_by_metadata(tx, wanted, known or {})
    values = _values(wanted)
    query, count = _queries(_shape(wanted))
    rows = (await tx.execute(query, values)).all()
    running = rows[0][2] if rows else (await tx.execute(count, values)).scalar_one()
    keys = [(SandboxId(row[0]), row[1]) for row in rows[: wanted.limit]]
    found = await _read_all(tx, keys, known or {})
    return SandboxPage(sandboxes=found, has_more=len(rows) > wanted.limit, running_count=int(running), read=found)


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


async def _page_by_metadata(
    tx: AsyncConnection, wanted: SandboxFilter, known: Mapping[SandboxId, Sandbox]
) -> SandboxPage:
    everything = replace(wanted, states=_VISIBLE, after=None, limit=MOST_COMPARED)
    query, _ = _queries(_shape(everything))
    rows = await tx.execute(query, _values(everything))
    read = await _read_all(tx, [(SandboxId(row[0]), row[1]) for row in rows], known)
    matching = [sandbox for sandbox in read if _has_all(sandbox.metadata, wanted.metadata)]
    ahead = [sandbox for sandbox in matching if sandbox.state in wanted.states and _is_after(sandbox, wanted)]
    return SandboxPage(
        sandboxes=tuple(ahead[: wanted.limit]),
        has_more=len(ahead) > wanted.limit,
        running_count=sum(sandbox.state is SandboxState.RUNNING for sandbox in matching),
        read=read,
    )


class _Shape(NamedTuple):
    """What of a filter makes another statement; its values are bound."""

    has_template: bool
    has_started_after: bool
    has_after: bool
    newest_first: bool


def _shape(wanted: SandboxFilter) -> _Shape:
    return _Shape(
        has_template=wanted.template is not None,
        has_started_after=wanted.started_after is not None,
        has_after=wanted.after is not None,
        newest_first=wanted.newest_first,
    )


def _values(wanted: SandboxFilter) -> dict[str, Any]:
    after = wanted.after
    return {
        "team": wanted.team_id,
        "states": sorted(state.value for state in wanted.states),
        "template": wanted.template,
        "since": wanted.started_after,
        "last_at": None if after is None else after.started_at,
        "last_id": None if after is None else after.sandbox_id,
        "most": wanted.limit + 1,
    }


@cache
def _queries(shape: _Shape) -> tuple[Select[Any], Select[Any]]:
    """The page (id, generation, count of running ones that match) and that count alone. Built once for each shape:
    building them costs more than running them."""
    count = select(func.count()).select_from(_COUNTED)
    count = count.where(*_conditions(shape, _COUNTED), _COUNTED.c.state == SandboxState.RUNNING.value)
    query = select(sandboxes.c.sandbox_id, sandboxes.c.generation, count.scalar_subquery())
    query = query.where(*_conditions(shape, sandboxes), sandboxes.c.state.in_(bindparam("states", expanding=True)))
    if shape.has_after:
        key = tuple_(sandboxes.c.started_at, sandboxes.c.sandbox_id)
        last = tuple_(bindparam("last_at", type_=UtcTime), bindparam("last_id", type_=String))
        query = query.where(key < last if shape.newest_first else key > last)
    order: list[ColumnElement[Any]] = [sandboxes.c.started_at, sandboxes.c.sandbox_id]
    query = query.order_by(*(column.desc() if shape.newest_first else column.asc() for column in order))
    return query.limit(bindparam("most", type_=Integer)), count


def _conditions(shape: _Shape, table: FromClause) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        table.c.team_id == bindparam("team", type_=String), table.c.is_listed == true()
    ]  # fmt: skip
    if shape.has_template:
        wanted = bindparam("template", type_=String)
        conditions.append(or_(table.c.template_id == wanted, table.c.template_alias == wanted))
    if shape.has_started_after:
        conditions.append(table.c.started_at >= bindparam("since", type_=UtcTime))
    return conditions


def _is_after(sandbox: Sandbox, wanted: SandboxFilter) -> bool:
    if wanted.after is None:
        return True
    key = (sandbox.started_at, str(sandbox.sandbox_id))
    last = (wanted.after.started_at, str(wanted.after.sandbox_id))
    return key < last if wanted.newest_first else key > last


def _has_all(metadata: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(metadata.get(key) == value for key, value in wanted.items())
