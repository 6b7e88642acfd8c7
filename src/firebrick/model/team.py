"""A team owns sandboxes, templates and keys; it is the unit of quota and the wall between users."""

from dataclasses import dataclass
from datetime import datetime

from firebrick.model.ids import KeyId, TeamId, TokenId, UserId


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """`max_sandboxes` counts creating and running ones (see `holds_quota`); `max_timeout_s` bounds every timeout.
    The other limits are sums over what is reserved for the team's sandboxes; 0 means that the team has none."""

    team_id: TeamId
    name: str
    created_at: datetime
    max_sandboxes: int
    max_timeout_s: int
    max_millicpu: int = 0
    max_memory_mib: int = 0
    max_disk_mib: int = 0
    max_creates_per_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A credential of a team. Only its hash is kept; `mask` is what may be shown (prefix and last 4)."""

    key_id: KeyId
    team_id: TeamId
    name: str
    mask: str
    created_at: datetime
    created_by: UserId | None = None
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person: member of teams. `subject` is `<issuer> <sub>` at an identity provider."""

    user_id: UserId
    email: str
    created_at: datetime
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A team of a user's; one of them is the default where a client names none."""

    team: Team
    is_default: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A long-lived credential of a user, of E2B's older kind (`sk_e2b_…`). Only its hash is kept."""

    token_id: TokenId
    user_id: UserId
    name: str
    mask: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamUse:
    """What a team holds of its quota at one moment."""

    sandbox_count: int
    millicpu: int
    memory_mib: int
    disk_mib: int
