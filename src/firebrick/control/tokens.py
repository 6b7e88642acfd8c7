"""Secrets that are derived, never stored: a sandbox's access token and the signature of a page token.

Both are HMACs under one seed that lives in a file of the control plane. Whoever holds the seed can reach every
sandbox; the database alone opens none. Replicas of one control plane share the seed.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firebrick.config import Config
from firebrick.model.errors import Internal, Invalid
from firebrick.model.ids import SandboxId, TeamId

SEED_NAME = "access-token.seed"
ISSUER_SEED_NAME = "jwt-issuer.seed"
"""The private key (Ed25519) behind the JWTs that we issue; a file of its own, so that it can be changed alone."""
SEAL_SEED_NAME = "snapshot-seal.seed"
"""What exported snapshots are sealed with. Instances that have the same take each other's from any team's key."""
ADMIN_TOKEN_PREFIX = "fba_"
ADMIN_TOKEN = re.compile(r"[!-~]{16,256}\Z")
SEED_BYTES = 32
MAX_PAGE_TOKEN_CHARS = 1024


def load_seed(path: Path) -> bytes:
    """Read the seed, or make it at the first start (mode 0600, complete or not there).

    Raises: Internal — the file is there but damaged; made anew it would lock every client out of its sandbox.
    """
    seed = _read_or_make(path, secrets.token_bytes(SEED_BYTES))
    if len(seed) != SEED_BYTES:
        raise Internal(f"The seed {path.name} in the data directory is damaged. Restore it from a backup.")
    return seed


def load_admin_token(path: Path) -> str:
    """The operator's token, made at the first start and readable by its owner only.

    Raises: Internal — the file is there but holds no token.
    """
    token = _read_or_make(path, f"{ADMIN_TOKEN_PREFIX}{secrets.token_hex(20)}\n".encode()).decode(errors="replace")
    if not ADMIN_TOKEN.match(token.strip()):
        raise Internal(f"The file {path.name} in the data directory holds no admin token. Remove it to get a new one.")
    return token.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What the control plane needs beside the seed of access tokens."""

    issuer_seed: bytes = field(repr=False)
    seal_seed: bytes = field(repr=False)
    admin_token: str = field(repr=False)


def load_secrets(config: Config) -> Secrets:
    """Read them, or make them at the first start."""
    return Secrets(
        issuer_seed=load_seed(config.data_dir / ISSUER_SEED_NAME),
        seal_seed=load_seed(config.data_dir / SEAL_SEED_NAME),
        admin_token=load_admin_token(config.admin_token_file),
    )


def _read_or_make(path: Path, content: bytes) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        # NOTE: link, not rename: of two control planes that start together one must lose and read the other's.
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
    return path.read_bytes()


class Tokens:
    """Derives and checks. `repr` shows nothing of the seed."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    def access_token(self, sandbox_id: SandboxId) -> str:
        """The guest agent's token of a sandbox: the same for its whole life, 64 hex characters."""
        return self._mac("access", sandbox_id).hex()

    def audit_key(self) -> bytes:
        """What the lines of the audit log are chained with."""
        return self._mac("audit", "log")

    def traffic_token(self, sandbox_id: SandboxId) -> str:
        """What requests to the ports of a sandbox without public traffic must bring; 64 hex characters."""
        return self._mac("traffic", sandbox_id).hex()

    def page_token(self, team_id: TeamId, position: dict[str, Any]) -> str:
        """An opaque next-page token, good for one team only."""
        body = json.dumps(position, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._mac("page", team_id, body)[:16] + body).decode().rstrip("=")

    def read_page_token(self, team_id: TeamId, token: str) -> dict[str, Any]:
        """Raises Invalid for a token that we did not make for this team."""
        if len(token) <= MAX_PAGE_TOKEN_CHARS:
            try:
                raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            except (binascii.Error, ValueError):
                raw = b""
            if hmac.compare_digest(raw[:16], self._mac("page", team_id, raw[16:])[:16]):
                position: dict[str, Any] = json.loads(raw[16:])
                return position
        raise Invalid("Invalid next token")

    def _mac(self, purpose: str, subject: str, body: bytes = b"") -> bytes:
        return hmac.new(self._seed, f"{purpose}\0{subject}\0".encode() + body, hashlib.sha256).digest()
