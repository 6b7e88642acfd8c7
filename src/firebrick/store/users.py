"""Rows of users, their memberships and their access tokens."""

from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.errors import AlreadyExists
from firebrick.model.ids import TeamId, TokenId, UserId
from firebrick.model.team import AccessToken, Membership, User
from firebrick.store.schema import access_tokens, team_members, teams, users
from firebrick.store.teams import team_from_row


def _user(row: Row[Any]) -> User:
    return User(user_id=UserId(row.user_id), email=row.email, created_at=row.created_at, subject=row.subject)


async def user_insert(tx: AsyncConnection, user: User) -> None:
    """Raises AlreadyExists when the address or the subject is taken; the transaction is then of no more use."""
    values = {"user_id": user.user_id, "email": user.email, "created_at": user.created_at, "subject": user.subject}
    try:
        await tx.execute(insert(users).values(**values))
    except IntegrityError as exc:
        raise AlreadyExists("There is a user with this address or subject already.") from exc


async def user_fetch(tx: AsyncConnection, user_id: UserId) -> User | None:
    row = (await tx.execute(select(users).where(users.c.user_id == user_id))).one_or_none()
    return None if row is None else _user(row)


async def user_fetch_by_email(tx: AsyncConnection, email: str) -> User | None:
    row = (await tx.execute(select(users).where(users.c.email == email))).one_or_none()
    return None if row is None else _user(row)


async def user_fetch_by_subject(tx: AsyncConnection, subject: str) -> User | None:
    row = (await tx.execute(select(users).where(users.c.subject == subject))).one_or_none()
    return None if row is None else _user(row)


async def user_list(tx: AsyncConnection) -> tuple[User, ...]:
    """By address."""
    return tuple(_user(row) for row in await tx.execute(select(users).order_by(users.c.email)))


async def user_delete(tx: AsyncConnection, user_id: UserId) -> bool:
    """With memberships and access tokens; API keys that it made belong to their teams and stay."""
    await tx.execute(delete(access_tokens).where(access_tokens.c.user_id == user_id))
    await tx.execute(delete(team_members).where(team_members.c.user_id == user_id))
    return bool((await tx.execute(delete(users).where(users.c.user_id == user_id))).rowcount)


async def member_insert(tx: AsyncConnection, team_id: TeamId, user_id: UserId, *, is_default: bool) -> None:
    """Idempotent. A new default takes the place of the old one."""
    if is_default:
        await tx.execute(update(team_members).where(team_members.c.user_id == user_id).values(is_default=False))
    await tx.execute(
        delete(team_members).where(team_members.c.user_id == user_id, team_members.c.team_id == team_id)
    )  # fmt: skip
    await tx.execute(insert(team_members).values(team_id=team_id, user_id=user_id, is_default=is_default))


async def member_delete(tx: AsyncConnection, team_id: TeamId, user_id: UserId) -> bool:
    gone = delete(team_members).where(team_members.c.user_id == user_id, team_members.c.team_id == team_id)
    return bool((await tx.execute(gone)).rowcount)


async def member_list_teams(tx: AsyncConnection, user_id: UserId) -> tuple[Membership, ...]:
    """The user's teams, the default first, then by name."""
    query = (
        select(teams, team_members.c.is_default)
        .join(team_members, team_members.c.team_id == teams.c.team_id)
        .where(team_members.c.user_id == user_id)
        .order_by(team_members.c.is_default.desc(), teams.c.name)
    )
    return tuple(Membership(team=team_from_row(row), is_default=row.is_default) for row in await tx.execute(query))


async def token_insert(tx: AsyncConnection, token: AccessToken, *, digest: str) -> None:
    """`digest` is the hex SHA-256 of the token; the token itself is never stored."""
    await tx.execute(
        insert(access_tokens).values(
            token_id=token.token_id,
            user_id=token.user_id,
            name=token.name,
            hash=digest,
            mask=token.mask,
            created_at=token.created_at,
        )
    )


async def token_fetch_by_digest(tx: AsyncConnection, digest: str) -> tuple[AccessToken, User] | None:
    query = (
        select(users, *(column.label(f"token_{column.name}") for column in access_tokens.c))
        .join(access_tokens, access_tokens.c.user_id == users.c.user_id)
        .where(access_tokens.c.hash == digest)
    )
    row = (await tx.execute(query)).one_or_none()
    if row is None:
        return None
    token = AccessToken(
        token_id=TokenId(row.token_token_id),
        user_id=UserId(row.user_id),
        name=row.token_name,
        mask=row.token_mask,
        created_at=row.token_created_at,
    )
    return token, _user(row)


async def token_delete(tx: AsyncConnection, user_id: UserId, token_id: TokenId) -> bool:
    """False when the user has no such token."""
    gone = delete(access_tokens).where(access_tokens.c.token_id == token_id, access_tokens.c.user_id == user_id)
    return bool((await tx.execute(gone)).rowcount)
