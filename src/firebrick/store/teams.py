"""Rows of teams and their API keys."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.errors import AlreadyExists
from firebrick.model.ids import KeyId, TeamId, UserId
from firebrick.model.team import ApiKey, Team
from firebrick.store.schema import api_keys, teams

_LIMITS = ("max_sandboxes", "max_timeout_s", "max_millicpu", "max_memory_mib", "max_disk_mib", "max_creates_per_s")


def team_from_row(row: Row[Any]) -> Team:
    return Team(
        team_id=TeamId(row.team_id),
        name=row.name,
        created_at=row.created_at,
        **{name: getattr(row, name) for name in _LIMITS},
    )


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=KeyId(row.key_id),
        team_id=TeamId(row.team_id),
        name=row.name,
        mask=row.mask,
        created_at=row.created_at,
        created_by=None if row.created_by is None else UserId(row.created_by),
        last_used_at=row.last_used_at,
    )


async def team_insert(tx: AsyncConnection, team: Team) -> None:
    """Raises AlreadyExists when another team has the name; the transaction is then of no more use."""
    values = {"team_id": team.team_id, "name": team.name, "created_at": team.created_at}
    try:
        await tx.execute(insert(teams).values(**values, **{name: getattr(team, name) for name in _LIMITS}))
    except IntegrityError as exc:
        raise AlreadyExists(f"There is a team '{team.name}' already. Choose another name.") from exc


async def team_update(tx: AsyncConnection, team: Team) -> None:
    """Write its limits."""
    changed = update(teams).where(teams.c.team_id == team.team_id)
    await tx.execute(changed.values(**{name: getattr(team, name) for name in _LIMITS}))


async def team_fetch(tx: AsyncConnection, team_id: TeamId) -> Team | None:
    row = (await tx.execute(select(teams).where(teams.c.team_id == team_id))).one_or_none()
    return None if row is None else team_from_row(row)


async def team_fetch_by_name(tx: AsyncConnection, name: str) -> Team | None:
    row = (await tx.execute(select(teams).where(teams.c.name == name))).one_or_none()
    return None if row is None else team_from_row(row)


async def team_list(tx: AsyncConnection) -> tuple[Team, ...]:
    """Oldest first."""
    rows = await tx.execute(select(teams).order_by(teams.c.created_at, teams.c.team_id))
    return tuple(team_from_row(row) for row in rows)


async def key_insert(tx: AsyncConnection, key: ApiKey, *, digest: str) -> None:
    """`digest` is the hex SHA-256 of the key; the key itself is never stored."""
    await tx.execute(
        insert(api_keys).values(
            key_id=key.key_id,
            team_id=key.team_id,
            name=key.name,
            hash=digest,
            mask=key.mask,
            created_at=key.created_at,
            created_by=key.created_by,
            last_used_at=key.last_used_at,
        )
    )


async def key_list(tx: AsyncConnection, team_id: TeamId) -> tuple[ApiKey, ...]:
    """Oldest first."""
    query = select(api_keys).where(api_keys.c.team_id == team_id)
    return tuple(_key(row) for row in await tx.execute(query.order_by(api_keys.c.created_at, api_keys.c.key_id)))


async def key_rename(tx: AsyncConnection, team_id: TeamId, key_id: KeyId, name: str) -> bool:
    """False when the team has no such key."""
    changed = update(api_keys).where(api_keys.c.key_id == key_id, api_keys.c.team_id == team_id)
    return bool((await tx.execute(changed.values(name=name))).rowcount)


async def key_delete(tx: AsyncConnection, team_id: TeamId, key_id: KeyId) -> ApiKey | None:
    """The key that was removed; None when the team had no such key."""
    query = select(api_keys).where(api_keys.c.key_id == key_id, api_keys.c.team_id == team_id)
    row = (await tx.execute(query)).one_or_none()
    if row is None:
        return None
    await tx.execute(delete(api_keys).where(api_keys.c.key_id == key_id))
    return _key(row)


async def key_note_used(tx: AsyncConnection, used: Mapping[KeyId, datetime]) -> None:
    """Write when keys were last used; keys that are gone are skipped."""
    statement = update(api_keys).where(api_keys.c.key_id == bindparam("wanted_id"))
    for key_id, at in used.items():
        await tx.execute(statement.values(last_used_at=bindparam("used_at")), {"wanted_id": key_id, "used_at": at})


_BY_DIGEST = (
    select(teams, *(column.label(f"key_{column.name}") for column in api_keys.c))
    .join(api_keys, api_keys.c.team_id == teams.c.team_id)
    .where(api_keys.c.hash == bindparam("wanted_hash"))
)


async def key_fetch_by_digest(tx: AsyncConnection, digest: str) -> tuple[ApiKey, str, Team] | None:
    """The key whose digest this is, the stored digest (for a comparison in constant time) and its team."""
    row = (await tx.execute(_BY_DIGEST, {"wanted_hash": digest})).one_or_none()
    if row is None:
        return None
    team = team_from_row(row)
    key = ApiKey(
        key_id=KeyId(row.key_key_id),
        team_id=team.team_id,
        name=row.key_name,
        mask=row.key_mask,
        created_at=row.key_created_at,
        created_by=row.key_created_by,
        last_used_at=row.key_last_used_at,
    )
    return key, row.key_hash, team


def with_limits(team: Team, limits: Mapping[str, int | float | None]) -> Team:
    """The team with the limits that are given; None leaves one as it is."""
    return replace(team, **{name: value for name, value in limits.items() if value is not None})  # type: ignore[arg-type]
