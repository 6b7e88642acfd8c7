"""Who is asking, and for whom: from the headers of a request to a caller.

X-API-Key                                  a team
Authorization: Bearer <JWT>, X-Team-ID     a user, for one of its teams
Authorization: Bearer sk_e2b_…             a user, for the team named or its default
X-Admin-Token, X-Team-ID                   the operator, for any team
"""

import hmac
from dataclasses import dataclass

from firebrick.control.jwts import Jwts
from firebrick.control.keys import KEY_PATTERN, KeyService, digest_of
from firebrick.control.platform import Platform
from firebrick.control.users import TOKEN_PREFIX, UserService
from firebrick.model.errors import Forbidden, NotFound, Unauthenticated
from firebrick.model.ids import TeamId, UserId
from firebrick.model.team import Team, User
from firebrick.store.teams import team_fetch
from firebrick.store.users import token_fetch_by_digest, user_fetch, user_fetch_by_email, user_fetch_by_subject

ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a request brought, unchecked."""

    api_key: str | None = None
    bearer: str | None = None
    team_id: str | None = None
    admin_token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """`actor` may be shown to the team."""

    actor: str
    team: Team | None = None
    user: User | None = None


class IdentityService:
    def __init__(
        self, platform: Platform, keys: KeyService, users: UserService, jwts: Jwts, admin_token: str
    ) -> None:  # fmt: skip
        self._platform = platform
        self._keys = keys
        self._users = users
        self._jwts = jwts
        self._admin_digest = digest_of(admin_token)

    async def team_caller(self, given: Credentials) -> Caller:
        """Somebody who acts for a team.

        Raises: Unauthenticated — nothing valid. Forbidden — valid, but not for that team.
        """
        if given.api_key or not (given.bearer or given.admin_token):
            key, team = await self._keys.authenticate(given.api_key)
            return Caller(actor=f"key {key.mask}", team=team)
        return await self.manager_caller(given)

    async def manager_caller(self, given: Credentials) -> Caller:
        """Somebody who may manage a team's keys: a user or the operator, never a key, which could breed more.

        Raises: Unauthenticated, Forbidden.
        """
        if given.admin_token:
            caller = self.admin_caller(given)
            if not given.team_id:
                raise Unauthenticated("Say for which team: send its id in the header X-Team-ID.")
            async with self._platform.database.read() as tx:
                team = await team_fetch(tx, TeamId(given.team_id))
            if team is None:
                raise NotFound("There is no such team.")
            return Caller(actor=caller.actor, team=team)
        caller = await self.user_caller(given)
        assert caller.user is not None
        teams = await self._users.teams_of(caller.user.user_id)
        if given.team_id:
            found = next((item.team for item in teams if item.team.team_id == given.team_id), None)
        else:
            found = next((item.team for item in teams if item.is_default), None)
        if found is None:
            # The same words for a team that does not exist and one that is not theirs.
            raise Forbidden("You are not a member of that team. Send the id of one of yours in X-Team-ID.")
        return Caller(actor=caller.actor, team=found, user=caller.user)

    async def user_caller(self, given: Credentials) -> Caller:
        """Raises Unauthenticated — no valid token, or its user is not known here."""
        if not given.bearer:
            raise Unauthenticated("No access token: send it as `Authorization: Bearer …`.")
        user = await (self._by_token if given.bearer.startswith(TOKEN_PREFIX) else self._by_jwt)(given.bearer)
        return Caller(actor=f"user {user.email}", user=user)

    def admin_caller(self, given: Credentials) -> Caller:
        """Raises Unauthenticated — no or a wrong admin token."""
        if not hmac.compare_digest(digest_of(given.admin_token or ""), self._admin_digest):
            raise Unauthenticated("This needs the operator's token, in the header X-Admin-Token.")
        return Caller(actor=ADMIN)

    async def _by_token(self, token: str) -> User:
        if not KEY_PATTERN.match(token):
            raise _wrong_token()
        async with self._platform.database.read() as tx:
            found = await token_fetch_by_digest(tx, digest_of(token))
        if found is None:
            raise _wrong_token()
        return found[1]

    async def _by_jwt(self, token: str) -> User:
        claims = await self._jwts.check(token)
        async with self._platform.database.read() as tx:
            if self._jwts.is_ours(claims):
                found = await user_fetch(tx, UserId(claims.subject))
            else:
                found = await user_fetch_by_subject(tx, f"{claims.issuer} {claims.subject}")
                if found is None and claims.email is not None:
                    found = await user_fetch_by_email(tx, claims.email)
        if found is None:
            raise Unauthenticated("The token is valid, but its user is not known here. Ask the operator to add you.")
        return found


def _wrong_token() -> Unauthenticated:
    return Unauthenticated("Invalid access token. Make a new one, or use an API key.")
