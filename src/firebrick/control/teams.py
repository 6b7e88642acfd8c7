"""Teams and their API keys: who is asking, and for whom."""

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict

from firebrick.clock import Clock
from firebrick.config import Config
from firebrick.model.errors import Invalid, Unauthenticated
from firebrick.model.ids import KeyId, TeamId
from firebrick.model.team import ApiKey, Team
from firebrick.store.database import Database
from firebrick.store.teams import key_fetch_by_digest, key_insert, team_fetch_by_name, team_insert

DEFAULT_TEAM = "default"
KEY_PATTERN = re.compile(r"[!-~]{1,256}\Z")
CACHE_S = 5.0
"""How long a key that was found is not looked up again; so a removed key may work this long."""
CACHE_COUNT = 1024


def new_api_key() -> str:
    """`e2b_` and 40 hex digits: E2B's older clients refuse anything else before they send it."""
    return "e2b_" + secrets.token_hex(20)


def digest_of(key: str) -> str:
    """What is stored of a key. 160 random bits need no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


class TeamService:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._found: OrderedDict[str, tuple[float, Team]] = OrderedDict()

    async def authenticate(self, key: str | None) -> Team:
        """The team that `key` belongs to.

        Raises: Unauthenticated — no key, or not one of ours.
        """
        if not key:
            raise Unauthenticated("No API key: send it in the header X-API-Key. `firebrick env` prints the one to use.")
        if not KEY_PATTERN.match(key):
            raise _wrong_key()
        digest = digest_of(key)
        now = self._clock.monotonic_s()
        cached = self._found.get(digest)
        if cached is not None and now - cached[0] < CACHE_S:
            return cached[1]
        async with self._database.read() as tx:
            found = await key_fetch_by_digest(tx, digest)
        if found is None or not hmac.compare_digest(found[1], digest):
            raise _wrong_key()
        self._found[digest] = (now, found[2])
        self._found.move_to_end(digest)
        if len(self._found) > CACHE_COUNT:
            self._found.popitem(last=False)
        return found[2]


def _wrong_key() -> Unauthenticated:
    return Unauthenticated("Invalid API key. `firebrick env` prints the one to use.")


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
        team = found or _default_team(clock, config)
        if found is None:
            await team_insert(tx, team)
        plain = wanted_key or (new_api_key() if found is None else None)
        if plain is None or await key_fetch_by_digest(tx, digest_of(plain)) is not None:
            return team, None
        key = ApiKey(
            key_id=KeyId(f"key_{secrets.token_hex(8)}"),
            team_id=team.team_id,
            name="first key",
            mask=f"{plain[:6]}…{plain[-4:]}",
            created_at=clock.now(),
        )
        await key_insert(tx, key, digest=digest_of(plain))
    return team, plain


def _default_team(clock: Clock, config: Config) -> Team:
    return Team(
        team_id=TeamId(f"team_{secrets.token_hex(8)}"),
        name=DEFAULT_TEAM,
        created_at=clock.now(),
        max_sandboxes=config.max_sandboxes_per_team,
        max_timeout_s=config.max_timeout_s,
    )
