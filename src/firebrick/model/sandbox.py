"""A sandbox: one isolated, addressable environment that a user asked for.

    creating ──▶ running ⇄ paused (pausing, resuming between) ──▶ ended
        └────────────┴──▶ ending ─────────────────────────────────▲

The rules of that picture are in `lifecycle/sandbox_machine.py`; here are only the words.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from firebrick.model.ids import BuildId, MachineId, NodeId, SandboxId, SnapshotId, TeamId, TemplateId
from firebrick.model.machine import Limits, RuntimeName


class SandboxState(StrEnum):
    CREATING = "creating"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    ENDING = "ending"
    ENDED = "ended"


class OnTimeout(StrEnum):
    """What the platform does when a sandbox's time is over."""

    KILL = "kill"
    PAUSE = "pause"


class EndReason(StrEnum):
    KILLED = "killed"
    TIMEOUT = "timeout"
    GUEST_EXIT = "guest_exit"
    OOM = "oom"
    NODE_LOST = "node_lost"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One sandbox as the control plane keeps it. Times are UTC with microseconds.

    Of a paused one `expires_at` is the time of its pause, `keeps_memory` tells whether its processes go on after a
    resume or only its disk is there, `silent_at_pause` that its guest agent did not answer any more, and `timeout_s` is
    the timeout it was last given, for the resume. `idle_timeout_s` ends or pauses a running one earlier when it did
    nothing for so long. `recoverable_until` is set while an ended sandbox's disk lies in the grace bin. `network` are
    its network options as they were asked.
    """

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
    on_timeout: OnTimeout = OnTimeout.KILL
    auto_pause_memory: bool = True
    auto_resume: bool = False
    idle_timeout_s: int | None = None
    paused_at: datetime | None = None
    keeps_memory: bool | None = None
    recoverable_until: datetime | None = None
    snapshot_id: SnapshotId | None = None
    network: dict[str, Any] | None = None
    silent_at_pause: bool = False
