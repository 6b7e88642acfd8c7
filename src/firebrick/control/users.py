"""Users, their teams, and the access tokens of E2B's older kind."""

import re
import secrets
import uuid
from collections.abc import Sequence
from datetime import datetime

from firebrick.control.audit import AuditService
from firebrick.control.jwts import Jwts
from firebrick.control.keys import digest_of, mask_of
from firebrick.control.platform import Platform
from firebrick.control.teams import no_team
from firebrick.model.errors import Invalid, NotFound
from firebrick.model.ids import TeamId, TokenId, UserId
from firebrick.model.team import AccessToken, Membership, User
from firebrick.store.teams import team_fetch
from firebrick.store.users import (
    member_delete,
    member_insert,
    member_list_teams,
    token_delete,
    token_insert,
    user_delete,
    user_fetch,
    user_insert,
    user_list,
)

TOKEN_PREFIX = "sk_e2b_"
EMAIL = re.compile(r"[^@\s\0]{1,190}@[^@\s\0]{1,60}\Z")


class UserService:
    def __init__(self, platform: Platform, audit: AuditService, jwts: Jwts) -> None:
        self._platform = platform
        self._jwts = jwts
        self._audit = audit

    async def create(self, email: str, *, team_ids: Sequence[TeamId] = (), subject: str | None = None) -> User:
        """A user and its memberships; the first team is its default.

        Raises: Invalid — no mail address. AlreadyExists — it is taken. NotFound — a team.
        """
        if not EMAIL.match(email):
            raise Invalid("email: must be a mail address")
        user = User(
            user_id=UserId(str(uuid.uuid4())),
            email=email.lower(),
            created_at=self._platform.clock.now(),
            subject=subject,
        )
        async with self._platform.database.write() as tx:
            await user_insert(tx, user)
            await self._audit.note(tx, "user.create", object_id=user.user_id, detail=user.email)
            for index, team_id in enumerate(dict.fromkeys(team_ids)):
                if await team_fetch(tx, team_id) is None:
                    raise no_team()
                await member_insert(tx, team_id, user.user_id, is_default=index == 0)
                await self._audit.note(tx, "team.add_member", team_id=team_id, object_id=user.user_id)
        return user

    async def list_all(self) -> tuple[User, ...]:
        async with self._platform.database.read() as tx:
            return await user_list(tx)

    async def fetch(self, user_id: UserId) -> User:
        """Raises NotFound."""
        async with self._platform.database.read() as tx:
            found = await user_fetch(tx, user_id)
        if found is None:
            raise _no_user()
        return found

    async def delete(self, user_id: UserId) -> None:
        """Its tokens open nothing from the return on. Raises NotFound."""
        async with self._platform.database.write() as tx:
            if not await user_delete(tx, user_id):
                raise _no_user()
            await self._audit.note(tx, "user.delete", object_id=user_id)

    async def teams_of(self, user_id: UserId) -> tuple[Membership, ...]:
        async with self._platform.database.read() as tx:
            return await member_list_teams(tx, user_id)

    async def add_member(self, team_id: TeamId, user_id: UserId) -> None:
        """Idempotent. The first team of a user is its default. Raises NotFound: the team or the user."""
        async with self._platform.database.write() as tx:
            if await team_fetch(tx, team_id) is None:
                raise no_team()
            if await user_fetch(tx, user_id) is None:
                raise _no_user()
            teams = await member_list_teams(tx, user_id)
            if any(item.team.team_id == team_id for item in teams):
                return
            await member_insert(tx, team_id, user_id, is_default=not teams)
            await self._audit.note(tx, "team.add_member", team_id=team_id, object_id=user_id)

    async def remove_member(self, team_id: TeamId, user_id: UserId) -> None:
        """Raises NotFound: the user is no member."""
        async with self._platform.database.write() as tx:
            if not await member_delete(tx, team_id, user_id):
                raise NotFound("The team has no such member.")
            await self._audit.note(tx, "team.remove_member", team_id=team_id, object_id=user_id)

    async def issue_jwt(self, user_id: UserId, *, lifetime_s: int) -> tuple[str, datetime]:
        """A JWT of ours for the user, and when it runs out. Raises NotFound."""
        user = await self.fetch(user_id)
        async with self._platform.database.write() as tx:
            await self._audit.note(tx, "jwt.issue", object_id=user_id, detail=f"{lifetime_s} s")
        return self._jwts.issue(user, lifetime_s=lifetime_s)

    async def create_token(self, user_id: UserId, name: str) -> tuple[AccessToken, str]:
        """A new access token of the user, and its plain text, which nobody can read again."""
        plain = TOKEN_PREFIX + secrets.token_hex(20)
        token = AccessToken(
            token_id=TokenId(str(uuid.uuid4())),
            user_id=user_id,
            name=name,
            mask=mask_of(plain),
            created_at=self._platform.clock.now(),
        )
        async with self._platform.database.write() as tx:
            await token_insert(tx, token, digest=digest_of(plain))
            await self._audit.note(tx, "token.create", object_id=token.token_id, detail=token.mask)
        return token, plain

    async def delete_token(self, user_id: UserId, token_id: TokenId) -> None:
        """From the return on it opens nothing. Raises NotFound: unknown, or another user's."""
        async with self._platform.database.write() as tx:
            if not await token_delete(tx, user_id, token_id):
                raise NotFound("There is no such access token, or it belongs to another user.")
            await self._audit.note(tx, "token.revoke", object_id=token_id)


def _no_user() -> NotFound:
    return NotFound("There is no such user.")
