"""Teams: who owns sandboxes, and how much of everything each may have."""

import secrets
from collections.abc import Mapping

from firebrick.clock import Clock
from firebrick.config import Config
from firebrick.control.audit import AuditService
from firebrick.control.keys import KEY_PATTERN, KeyService, digest_of, make_api_key, new_api_key
from firebrick.control.platform import Platform
from firebrick.control.templates import slug_of
from firebrick.model.errors import AlreadyExists, Invalid, NotFound
from firebrick.model.ids import TeamId
from firebrick.model.sandbox import SandboxState
from firebrick.model.team import Team
from firebrick.store.database import Database
from firebrick.store.sandboxes import sandbox_count_by_team
from firebrick.store.teams import (
    key_fetch_by_digest,
    key_insert,
    team_fetch,
    team_fetch_by_name,
    team_insert,
    team_list,
    team_update,
    with_limits,
)

DEFAULT_TEAM = "default"

Limits = Mapping[str, int | float | None]


class TeamService:
    def __init__(self, platform: Platform, keys: KeyService, audit: AuditService) -> None:
        self._platform = platform
        self._keys = keys
        self._audit = audit

    async def create(self, name: str, limits: Limits) -> Team:
        """Raises AlreadyExists — another team has that name, or one that makes the same namespace of it."""
        team = with_limits(new_team(name, self._platform.clock, self._platform.config), limits)
        async with self._platform.database.write() as tx:
            same = next((other for other in await team_list(tx) if slug_of(other) == slug_of(team)), None)
            if same is not None and same.name != team.name:
                raise AlreadyExists(
                    f"The names of team '{same.name}' begin with '{slug_of(team)}/' already. Choose another name."
                )
            await team_insert(tx, team)
            await self._audit.note(tx, "team.create", team_id=team.team_id, object_id=team.team_id, detail=name)
        return team

    async def set_limits(self, team_id: TeamId, limits: Limits) -> Team:
        """New limits hold for the next create; nothing that runs is ended. Raises NotFound."""
        async with self._platform.database.write() as tx:
            found = await team_fetch(tx, team_id)
            if found is None:
                raise no_team()
            team = with_limits(found, limits)
            await team_update(tx, team)
            given = ", ".join(f"{name}={value:g}" for name, value in limits.items() if value is not None)
            await self._audit.note(tx, "team.set_quota", team_id=team_id, object_id=team_id, detail=given)
        self._keys.forget_cached()
        return team

    async def fetch(self, team_id: TeamId) -> Team:
        """Raises NotFound."""
        async with self._platform.database.read() as tx:
            found = await team_fetch(tx, team_id)
        if found is None:
            raise no_team()
        return found

    async def list_all(self) -> tuple[Team, ...]:
        async with self._platform.database.read() as tx:
            return await team_list(tx)

    async def running_counts(self) -> Mapping[TeamId, int]:
        """How many sandboxes run, for each team that has any."""
        async with self._platform.database.read() as tx:
            return await sandbox_count_by_team(tx, SandboxState.RUNNING)


def no_team() -> NotFound:
    return NotFound("There is no such team.")


def new_team(name: str, clock: Clock, config: Config) -> Team:
    return Team(
        team_id=TeamId(f"team_{secrets.token_hex(8)}"),
        name=name,
        created_at=clock.now(),
        max_sandboxes=config.max_sandboxes_per_team,
        max_timeout_s=config.max_timeout_s,
        max_creates_per_s=config.max_creates_per_s_per_team,
    )


async def ensure_default_team(
    database: Database, *, clock: Clock, config: Config, wanted_key: str | None = None
) -> tuple[Team, str | None]:
    """Make sure of the first team, and of a key of it.

    Args:
        wanted_key: a key that was written down before (so that a crash between cannot lose it); it is made valid if
            it is not yet. None makes one together with the team.

    Returns: the team, and the key in plain text if it was stored just now; it can never be read again.
    Idempotent: yes.
    """
    if wanted_key is not None and not KEY_PATTERN.match(wanted_key):
        raise Invalid("An API key must be 1 to 256 visible ASCII characters.")
    async with database.write() as tx:
        found = await team_fetch_by_name(tx, DEFAULT_TEAM)
        team = found or new_team(DEFAULT_TEAM, clock, config)
        if found is None:
            await team_insert(tx, team)
        plain = wanted_key or (new_api_key() if found is None else None)
        if plain is None or await key_fetch_by_digest(tx, digest_of(plain)) is not None:
            return team, None
        key = make_api_key(team.team_id, plain, name="first key", now=clock.now())
        await key_insert(tx, key, digest=digest_of(plain))
    return team, plain
