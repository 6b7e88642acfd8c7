"""A sandbox: one isolated, addressable environment that a user asked for.

    creating ──▶ running ⇄ paused (pausing, resuming between) ──▶ ended
        └────────────┴──▶ ending ─────────────────────────────────▲

The rules of that picture are in `lifecycle/sandbox_machine.py`; here are only the words.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from firebrick.model.ids import BuildId, MachineId, NodeId, SandboxId, TeamId, TemplateId
from firebrick.model.machine import Limits, RuntimeName


class SandboxState(StrEnum):
    CREATING = "creating"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    ENDING = "ending"
    ENDED = "ended"


class EndReason(StrEnum):
    KILLED = "killed"
    TIMEOUT = "timeout"
    GUEST_EXIT = "guest_exit"
    OOM = "oom"
    NODE_LOST = "node_lost"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One sandbox as the control plane keeps it. Times are UTC with microseconds."""

    sandbox_id: SandboxId
    team_id: TeamId
    template_id: TemplateId
    build_id: BuildId
    state: SandboxState
    generation: int
    limits: Limits
    created_at: datetime
    started_at: datetime
    expires_at: datetime
    timeout_s: int
    template_alias: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    secure: bool = True
    runtime: RuntimeName | None = None
    node_id: NodeId | None = None
    machine_id: MachineId | None = None
    address: str | None = None
    allow_internet_access: bool | None = None
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    end_detail: str = ""
