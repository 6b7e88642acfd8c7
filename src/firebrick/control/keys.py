"""API keys: made, shown once, looked up by their hash, revoked at once."""

import hashlib
import hmac
import re
import secrets
import uuid
from collections import OrderedDict
from datetime import datetime

from firebrick.control.audit import AuditService
from firebrick.control.platform import Platform
from firebrick.model.errors import NotFound, Unauthenticated
from firebrick.model.ids import KeyId, TeamId, UserId
from firebrick.model.team import ApiKey, Team
from firebrick.store.teams import (
    key_delete,
    key_fetch_by_digest,
    key_insert,
    key_list,
    key_note_used,
    key_rename,
)

KEY_PREFIX = "e2b_"
KEY_PATTERN = re.compile(r"[!-~]{1,256}\Z")
CACHE_S = 5.0
"""How long a key that was found is not looked up again. Only where this process is the only one: there a revocation
empties the cache, so a revoked key never works."""
CACHE_COUNT = 1024


def new_api_key() -> str:
    """`e2b_` and 40 hex digits: E2B's older clients refuse anything else before they send it."""
    return KEY_PREFIX + secrets.token_hex(20)


def digest_of(secret: str) -> str:
    """What is stored of a key or token. 160 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def mask_of(secret: str) -> str:
    """What may be shown of a key or token."""
    prefix = re.match(r"(?:sk_)?e2b_", secret)
    shown = (prefix.end() if prefix else 0) + 2
    return f"{secret[:shown]}…{secret[-4:]}" if len(secret) > shown + 8 else "…"


def make_api_key(team_id: TeamId, plain: str, *, name: str, now: datetime, created_by: UserId | None = None) -> ApiKey:
    return ApiKey(
        key_id=KeyId(str(uuid.uuid4())),
        team_id=team_id,
        name=name,
        mask=mask_of(plain),
        created_at=now,
        created_by=created_by,
    )


class KeyService:
    def __init__(self, platform: Platform, audit: AuditService) -> None:
        self._platform = platform
        self._audit = audit
        self._found: OrderedDict[str, tuple[float, ApiKey, Team]] = OrderedDict()
        self._used: dict[KeyId, datetime] = {}

    async def authenticate(self, key: str | None) -> tuple[ApiKey, Team]:
        """The key's record and the team that it belongs to.

        Raises: Unauthenticated — no key, or not one of ours.
        """
        if not key:
            raise Unauthenticated("No API key: send it in the header X-API-Key. `firebrick env` prints the one to use.")
        if not KEY_PATTERN.match(key):
            raise _wrong_key()
        digest = digest_of(key)
        clock = self._platform.clock
        cached = self._found.get(digest)
        if cached is None or clock.monotonic_s() - cached[0] >= CACHE_S:
            async with self._platform.database.read() as tx:
                found = await key_fetch_by_digest(tx, digest)
            if found is None or not hmac.compare_digest(found[1], digest):
                raise _wrong_key()
            cached = (clock.monotonic_s(), found[0], found[2])
            self._remember(digest, cached)
        self._used[cached[1].key_id] = clock.now()
        return cached[1], cached[2]

    def _remember(self, digest: str, found: tuple[float, ApiKey, Team]) -> None:
        if not self._platform.database.is_sqlite:
            # Other replicas may revoke it, and nothing would tell us.
            return
        self._found[digest] = found
        self._found.move_to_end(digest)
        if len(self._found) > CACHE_COUNT:
            self._found.popitem(last=False)

    def forget_cached(self) -> None:
        """Keys or teams have changed: look each up again."""
        self._found.clear()

    async def create(self, team_id: TeamId, name: str, *, created_by: UserId | None = None) -> tuple[ApiKey, str]:
        """A new key of the team, and its plain text, which nobody can read again."""
        plain = new_api_key()
        key = make_api_key(team_id, plain, name=name, now=self._platform.clock.now(), created_by=created_by)
        async with self._platform.database.write() as tx:
            await key_insert(tx, key, digest=digest_of(plain))
            await self._audit.note(tx, "key.create", team_id=team_id, object_id=key.key_id, detail=key.mask)
        return key, plain

    async def list_of(self, team_id: TeamId) -> tuple[ApiKey, ...]:
        """Oldest first, with the last use written down."""
        await self.write_uses()
        async with self._platform.database.read() as tx:
            return await key_list(tx, team_id)

    async def rename(self, team_id: TeamId, key_id: KeyId, name: str) -> None:
        """Raises NotFound: unknown, or another team's."""
        async with self._platform.database.write() as tx:
            if not await key_rename(tx, team_id, key_id, name):
                raise _no_key()
            await self._audit.note(tx, "key.rename", team_id=team_id, object_id=key_id)
        self.forget_cached()

    async def revoke(self, team_id: TeamId, key_id: KeyId) -> None:
        """From the return on the key opens nothing. Raises NotFound: unknown, or another team's."""
        async with self._platform.database.write() as tx:
            key = await key_delete(tx, team_id, key_id)
            if key is None:
                raise _no_key()
            await self._audit.note(tx, "key.revoke", team_id=team_id, object_id=key_id, detail=key.mask)
        self.forget_cached()

    async def write_uses(self) -> None:
        """Write down when keys were last used: not in the requests themselves, which would each become a write."""
        used, self._used = self._used, {}
        if used:
            async with self._platform.database.write() as tx:
                await key_note_used(tx, used)


def _wrong_key() -> Unauthenticated:
    return Unauthenticated("Invalid API key. `firebrick env` prints the one to use.")


def _no_key() -> NotFound:
    return NotFound("There is no such API key, or it belongs to another team.")
