"""Rows of teams and their API keys."""

from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.ids import KeyId, TeamId
from firebrick.model.team import ApiKey, Team
from firebrick.store.schema import api_keys, teams


def _team(row: Row[Any]) -> Team:
    return Team(
        team_id=TeamId(row.team_id),
        name=row.name,
        created_at=row.created_at,
        max_sandboxes=row.max_sandboxes,
        max_timeout_s=row.max_timeout_s,
    )


async def team_insert(tx: AsyncConnection, team: Team) -> None:
    await tx.execute(
        insert(teams).values(
            team_id=team.team_id,
            name=team.name,
            created_at=team.created_at,
            max_sandboxes=team.max_sandboxes,
            max_timeout_s=team.max_timeout_s,
        )
    )


async def team_fetch_by_name(tx: AsyncConnection, name: str) -> Team | None:
    row = (await tx.execute(select(teams).where(teams.c.name == name))).one_or_none()
    return None if row is None else _team(row)


async def team_fetch_locked(tx: AsyncConnection, team_id: TeamId) -> Team | None:
    """Fetch and keep every other writer away from this team's quota until the transaction ends."""
    row = (await tx.execute(select(teams).where(teams.c.team_id == team_id).with_for_update())).one_or_none()
    return None if row is None else _team(row)


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
        )
    )


async def key_fetch_by_digest(tx: AsyncConnection, digest: str) -> tuple[ApiKey, str, Team] | None:
    """The key whose digest this is, the stored digest (for a comparison in constant time) and its team."""
    query = (
        select(teams, api_keys.c.key_id, api_keys.c.name.label("key_name"), api_keys.c.hash, api_keys.c.mask)
        .add_columns(api_keys.c.created_at.label("key_created_at"))
        .join(api_keys, api_keys.c.team_id == teams.c.team_id)
        .where(api_keys.c.hash == digest)
    )
    row = (await tx.execute(query)).one_or_none()
    if row is None:
        return None
    team = _team(row)
    key = ApiKey(
        key_id=KeyId(row.key_id),
        team_id=team.team_id,
        name=row.key_name,
        mask=row.mask,
        created_at=row.key_created_at,
    )
    return key, row.hash, team
