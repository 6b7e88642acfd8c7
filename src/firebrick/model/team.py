"""A team owns sandboxes, templates and keys; it is the unit of quota and the wall between users."""

from dataclasses import dataclass
from datetime import datetime

from firebrick.model.ids import KeyId, TeamId


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """`max_sandboxes` counts creating, running and paused ones; `max_timeout_s` bounds every timeout."""

    team_id: TeamId
    name: str
    created_at: datetime
    max_sandboxes: int
    max_timeout_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A credential of a team. Only its hash is kept; `mask` is what may be shown (prefix and last 4)."""

    key_id: KeyId
    team_id: TeamId
    name: str
    mask: str
    created_at: datetime
