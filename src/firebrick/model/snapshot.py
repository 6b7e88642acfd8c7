"""A snapshot: saved state of a sandbox from which others start. To its owners it is a template."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from firebrick.model.ids import BuildId, NodeId, SandboxId, SnapshotId, TeamId, TemplateId
from firebrick.model.machine import Limits, RuntimeName


class SnapshotState(StrEnum):
    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`template_id` is what its owner creates sandboxes from; `name` is `<team>/<name>`, None for an unnamed one.

    `build_id` is what it was based on, `source_id` the sandbox it was taken of. A private one serves a fork and is
    never shown. `disk_bytes` is what its files hold, `stored_bytes` what its chunks add to
    the store, None until they are there. It starts on the runtime that made it.
    """

    snapshot_id: SnapshotId
    template_id: TemplateId
    team_id: TeamId
    state: SnapshotState
    build_id: BuildId
    source_id: SandboxId
    node_id: NodeId
    limits: Limits
    created_at: datetime
    runtime: RuntimeName | None = None
    tag: str = "default"
    name: str | None = None
    keeps_memory: bool = False
    is_private: bool = False
    disk_bytes: int = 0
    stored_bytes: int | None = None

    @property
    def shown_id(self) -> str:
        """What clients call it: `<team>/<name>:<tag>`, or `<template id>:<tag>` without a name."""
        return f"{self.name or self.template_id}:{self.tag}"
