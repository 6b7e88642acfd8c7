"""The list of a team's sandboxes, page by page.

A page starts after a key (start time, id), not at an offset, so it stays right while sandboxes come and go.
Metadata is found by the digests of its pairs, which have a table of their own: metadata never changes, and reading
a team's thousand sandboxes to find the one with a pair cost 5 ms of processor time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
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

from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.store.metadata import pair_digest
from firebrick.store.sandboxes import sandbox_from_row
from firebrick.store.schema import UtcTime, sandbox_metadata, sandboxes

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
    """`running_count` is of all running ones that match, on every page; `read` are those that were not known."""

    sandboxes: tuple[Sandbox, ...]
    has_more: bool
    running_count: int
    read: tuple[Sandbox, ...]


async def sandbox_list_page(
    tx: AsyncConnection, wanted: SandboxFilter, known: Mapping[SandboxId, Sandbox] | None = None
) -> SandboxPage:
    """One page. A sandbox in `known` whose generation is still the stored one is not read again: turning rows into
    objects is most of the cost of a page, and between two lists few rows change."""
    values = _values(wanted)
    query, count = _queries(_shape(wanted))
    rows = (await tx.execute(query, values)).all()
    running = rows[0][2] if rows else (await tx.execute(count, values)).scalar_one()
    keys = [(row[0], row[1]) for row in rows[: wanted.limit]]
    found, read = await _read_all(tx, keys, known or {})
    return SandboxPage(sandboxes=found, has_more=len(rows) > wanted.limit, running_count=int(running), read=read)


async def _read_all(
    tx: AsyncConnection, keys: list[tuple[SandboxId, int]], known: Mapping[SandboxId, Sandbox]
) -> tuple[tuple[Sandbox, ...], tuple[Sandbox, ...]]:
    """Those sandboxes in that order, and the ones among them that had to be read; one that ended between the two
    statements is given as it ended."""
    have = [known.get(sandbox_id) for sandbox_id, _ in keys]
    if all(one is not None and one.generation == key[1] for one, key in zip(have, keys, strict=True)):
        return tuple(have), ()  # type: ignore[arg-type]
    found = {
        one.sandbox_id: one
        for one, (_, generation) in zip(have, keys, strict=True)
        if one is not None and one.generation == generation
    }
    missing = [sandbox_id for sandbox_id, _ in keys if sandbox_id not in found]
    query = select(sandboxes).where(sandboxes.c.sandbox_id.in_(missing))
    read = tuple(sandbox_from_row(row) for row in await tx.execute(query))
    found |= {sandbox.sandbox_id: sandbox for sandbox in read}
    return tuple(found[sandbox_id] for sandbox_id, _ in keys if sandbox_id in found), read


class _Shape(NamedTuple):
    """What of a filter makes another statement; its values are bound."""

    has_template: bool
    has_pair: bool
    has_pairs: bool
    has_started_after: bool
    has_after: bool
    newest_first: bool


def _shape(wanted: SandboxFilter) -> _Shape:
    return _Shape(
        has_template=wanted.template is not None,
        has_pair=len(wanted.metadata) == 1,
        has_pairs=len(wanted.metadata) > 1,
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
        "pairs": [pair_digest(key, value) for key, value in wanted.metadata.items()],
        "pair_count": len(wanted.metadata),
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
    if shape.has_pair or shape.has_pairs:
        pairs = sandbox_metadata.c
        having = select(pairs.sandbox_id).where(
            pairs.team_id == bindparam("team", type_=String), pairs.pair.in_(bindparam("pairs", expanding=True))
        )
        if shape.has_pairs:
            # Not for one pair: counting what can only be one costs half as much again.
            having = having.group_by(pairs.sandbox_id).having(func.count() == bindparam("pair_count", type_=Integer))
        conditions.append(table.c.sandbox_id.in_(having))
    if shape.has_started_after:
        conditions.append(table.c.started_at >= bindparam("since", type_=UtcTime))
    return conditions
