"""A template is a named recipe with its ready builds; a build is one immutable result of it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from firebrick.model.ids import BuildId, TeamId, TemplateId
from firebrick.model.machine import Limits


class BuildState(StrEnum):
    WAITING = "waiting"
    BUILDING = "building"
    READY = "ready"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """`team_id` None means shipped with Firebrick: every team may use it, none may change it.

    `is_snapshot`: it stands for the snapshots of one name, or for one without a name, and its alias is then its id.
    """

    template_id: TemplateId
    alias: str
    team_id: TeamId | None
    created_at: datetime
    is_snapshot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """`limits` are the sizes a sandbox of this build gets."""

    build_id: BuildId
    template_id: TemplateId
    state: BuildState
    limits: Limits
    created_at: datetime
