"""JSON Web Tokens of users: those that we issue (Ed25519, key in the data directory), and those of a configured
identity provider, checked against its published keys."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from firebrick.clock import Clock
from firebrick.config import Config
from firebrick.log import get_log
from firebrick.model.errors import Unauthenticated, Unavailable
from firebrick.model.team import User

OUR_ISSUER = "firebrick"
OUR_AUDIENCE = "firebrick-api"
PROVIDER_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
"""Asymmetric ones only: with a shared secret among them, a public key could be taken for the secret."""
MAX_TOKEN_CHARS = 8192
LEEWAY_S = 30
KEYS_KEPT_S = 3600.0
REFETCH_AFTER_S = 10.0
"""A token with an unknown key id makes us ask again (keys rotate), but not for every token somebody invents."""
FETCH_TIMEOUT_S = 5.0
MAX_KEYS_BYTES = 256 * 1024

log = get_log("control.jwt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a valid token says. `email` only where the provider vouches for it."""

    issuer: str
    subject: str
    email: str | None = None


class Jwts:
    """Issues and checks. `repr` shows nothing of the key."""

    def __init__(self, seed: bytes, config: Config, clock: Clock) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._config = config
        self._clock = clock
        self._keys = ProviderKeys(config.jwt_jwks_url, clock) if config.jwt_jwks_url else None

    def issue(self, user: User, *, lifetime_s: int) -> tuple[str, datetime]:
        """A token of ours for that user, and its end. It cannot be taken back alone: delete the user, or wait."""
        now = self._clock.now()
        expires_at = now + timedelta(seconds=lifetime_s)
        claims = {
            "iss": OUR_ISSUER,
            "aud": OUR_AUDIENCE,
            "sub": user.user_id,
            "email": user.email,
            "iat": now,
            "exp": expires_at,
        }
        return jwt.encode(claims, self._private, algorithm="EdDSA"), expires_at

    async def check(self, token: str) -> Claims:
        """Raises: Unauthenticated — not valid here. Unavailable — the provider's keys cannot be fetched."""
        if len(token) > MAX_TOKEN_CHARS:
            raise _wrong("it is too long")
        try:
            header = jwt.get_unverified_header(token)
            issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
            if issuer == OUR_ISSUER:
                return self._read(token, self._private.public_key(), ("EdDSA",), OUR_ISSUER, OUR_AUDIENCE)
            if self._keys is None or issuer != self._config.jwt_issuer:
                raise _wrong("its issuer is not known here")
            key = await self._keys.find(str(header.get("kid", "")))
            audience = self._config.jwt_audience or None
            return self._read(token, key, PROVIDER_ALGORITHMS, self._config.jwt_issuer, audience)
        except jwt.PyJWTError as exc:
            # The library's words name the reason (expired, wrong audience) and nothing of the token.
            raise _wrong(str(exc)) from exc

    @staticmethod
    def is_ours(claims: Claims) -> bool:
        return claims.issuer == OUR_ISSUER

    def _read(self, token: str, key: Any, algorithms: tuple[str, ...], issuer: str, audience: str | None) -> Claims:
        # NOTE: times are checked by our clock below, as every time of the control plane is.
        options = {
            "require": ["exp", "sub", "iss"], "verify_aud": audience is not None, "verify_exp": False,
            "verify_iat": False, "verify_nbf": False,
        }  # fmt: skip
        claims: Mapping[str, Any] = jwt.decode(
            token, key, algorithms=list(algorithms), issuer=issuer, audience=audience, options=options  # type: ignore[arg-type]
        )  # fmt: skip
        now = self._clock.now().timestamp()
        if not isinstance(claims["exp"], int | float) or now > claims["exp"] + LEEWAY_S:
            raise _wrong("it has expired")
        begins = claims.get("nbf", 0)
        if not isinstance(begins, int | float) or now < begins - LEEWAY_S:
            raise _wrong("it is not valid yet")
        email = claims.get("email") if claims.get("email_verified") is True else None
        return Claims(issuer=issuer, subject=str(claims["sub"]), email=email.lower() if email else None)


class ProviderKeys:
    """The identity provider's public keys (JWKS), fetched when needed and kept for an hour."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url = url
        self._clock = clock
        self._lock = asyncio.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_s: float | None = None

    async def find(self, key_id: str) -> jwt.PyJWK:
        """Raises: Unauthenticated — the provider has no such key. Unavailable — it cannot be asked."""
        async with self._lock:
            age_s = None if self._fetched_s is None else self._clock.monotonic_s() - self._fetched_s
            is_unknown = key_id not in self._keys
            if age_s is None or age_s > KEYS_KEPT_S or (is_unknown and age_s > REFETCH_AFTER_S):
                await self._fetch(may_fail=not is_unknown)
        found = self._keys.get(key_id)
        if found is None:
            raise _wrong("its signing key is not known")
        return found

    async def _fetch(self, *, may_fail: bool) -> None:
        try:
            async with httpx.AsyncClient(timeout=FETCH_TIMEOUT_S) as client:
                answer = await client.get(self._url)
                answer.raise_for_status()
                if len(answer.content) > MAX_KEYS_BYTES:
                    raise ValueError("the answer is too large")
                found = jwt.PyJWKSet.from_dict(answer.json())
        except (httpx.HTTPError, ValueError, jwt.PyJWTError) as exc:
            log.warning("jwt.keys_not_fetched", error=repr(exc))
            if may_fail:
                # What is known still signs; a provider's bad hour must not lock everybody out.
                return
            raise Unavailable("The identity provider's keys cannot be fetched. Try again.", detail=str(exc)) from exc
        self._keys = {key.key_id or "": key for key in found.keys}
        self._fetched_s = self._clock.monotonic_s()


def _wrong(why: str) -> Unauthenticated:
    return Unauthenticated(f"The access token is not valid here: {why}. Sign in again, or use an API key.")
