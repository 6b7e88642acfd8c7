"""What the control plane may ask of a node: the typed twin of api/node.proto.

`NodeClient` is implemented by the gRPC client (rpc/node_client.py) and by the simulated node. Protobuf
messages stop at that client; nothing above it sees one. Every command is idempotent on `sandbox_id`.

Every method raises `Unavailable` when the node does not answer in time; then nothing is known about the
command's effect, and the caller must undo it or ask again.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from firebrick.model.egress import OPEN, Egress
from firebrick.model.ids import BuildId, MachineId, NodeId, SandboxId, SnapshotId, TemplateId
from firebrick.model.machine import ExitCause, Limits, RuntimeName


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDescription:
    """What a node is and has. Capacities are the most it promises, over-commitment included."""

    node_id: NodeId
    version: str
    runtimes: tuple[RuntimeName, ...]
    builds: frozenset[BuildId]
    millicpu: int
    memory_mib: int
    disk_mib: int
    free_slot_count: int
    starting_count: int
    warm_count: int
    warm_wanted_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSandbox:
    """`access_token` empty leaves the guest agent's API open; `runtime` None takes the node's strongest.

    With `snapshot_id` the disk starts as that snapshot, on the runtime that made it, and processes go on where it has
    memory; `build_id` is then its build. `keep_memory` False gives up memory: processes start anew on the disk.
    """

    sandbox_id: SandboxId
    template_id: TemplateId
    build_id: BuildId
    limits: Limits
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    access_token: str = field(default="", repr=False)
    runtime: RuntimeName | None = None
    egress: Egress = OPEN
    snapshot_id: SnapshotId | None = None
    keep_memory: bool = True


class NodeSandboxState(StrEnum):
    """`running`; `paused`: at rest, resumable; `kept`: killed, but its disk waits in the grace bin, resumable too."""

    RUNNING = "running"
    PAUSED = "paused"
    KEPT = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSandbox:
    """A sandbox as its node sees it. `address` reaches the guest's ports from the edge of that node; empty while the
    sandbox has no machine.

    `keeps_memory`: paused, and its processes wait where they were. `kept_memory`: running, and its last resume found
    them so, or its start went on from a snapshot's memory. `paused_at`: since when it is paused or kept. `saved_bytes`:
    what its memory takes in files on this node.
    """

    sandbox_id: SandboxId
    machine_id: MachineId
    runtime: RuntimeName
    address: str
    started_at: datetime
    from_warm: bool
    state: NodeSandboxState = NodeSandboxState.RUNNING
    keeps_memory: bool = False
    kept_memory: bool = False
    paused_at: datetime | None = None
    saved_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseSandbox:
    """`keep_memory` is a wish: where the runtime cannot, the answer says so. `require_healthy`: not at all when the
    guest agent does not answer."""

    sandbox_id: SandboxId
    keep_memory: bool
    require_healthy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PausedSandbox:
    """What a pause left. `keeps_memory` False: only the disk. `disk_bytes`: what its disk, and its memory once that is
    in files, take on this node. `is_silent`: its guest agent did not answer at the pause."""

    sandbox_id: SandboxId
    machine_id: MachineId
    keeps_memory: bool
    paused_at: datetime
    disk_bytes: int
    is_silent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSnapshot:
    """A saved state from which sandboxes start, on the runtime that made it.

    `keeps_memory`: processes go on in what starts from it. `disk_bytes`: what its files hold. `stored_bytes`: what its
    chunks add to the store, compressed and without those that were there before; None until the last of them is
    stored: then a copy on the node's disk is all there is.
    """

    snapshot_id: SnapshotId
    build_id: BuildId
    runtime: RuntimeName
    keeps_memory: bool
    disk_bytes: int
    stored_bytes: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSnapshot:
    """A snapshot of another node's, as this one shall have it. `data_bytes`: the most that its files may hold."""

    snapshot_id: SnapshotId
    build_id: BuildId
    runtime: RuntimeName
    limits: Limits
    keeps_memory: bool
    data_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedSnapshot:
    """`memory_refusal`: why nothing goes on from its memory here, as a sentence; "": it has none, or it does."""

    snapshot: NodeSnapshot
    memory_refusal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxUsage:
    """One reading. `cpu_used_pct` is of one core, as E2B reports it: 200 means two cores busy."""

    timestamp: datetime
    cpu_ns: int
    cpu_used_pct: float
    memory_bytes: int
    memory_limit_bytes: int
    disk_bytes: int
    disk_limit_bytes: int
    process_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """`level` is debug, info, warn or error."""

    timestamp: datetime
    level: str
    message: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxExit:
    """A sandbox that ended by itself. `machine_id` tells an old life from the present one."""

    sandbox_id: SandboxId
    machine_id: MachineId
    cause: ExitCause
    exit_code: int
    detail: str


class NodeClient(Protocol):
    async def describe(self) -> NodeDescription:
        """What this node is and has, now. Cheap."""
        ...

    async def start_sandbox(self, request: StartSandbox) -> NodeSandbox:
        """Start, and answer when the guest agent has taken its settings. Repeating it for a sandbox that runs
        returns the same answer.

        Raises: NoCapacity — no slot, memory or disk free; NotFound — no such build or snapshot here; WrongState — it
        is paused or kept here; MemoryRefused — nothing goes on from the snapshot's memory here, and it was not given
        up; Unavailable; Internal — it cannot start, nothing is left.
        """
        ...

    async def pause_sandbox(self, request: PauseSandbox) -> PausedSandbox:
        """From running to paused. With `keep_memory` its processes are frozen where they are, their disk is safe
        beside them; without, or where the runtime cannot, its machine is ended after a sync and its disk kept.
        Repeating it returns the same answer; a memory that is kept is given up when it is repeated without.

        Raises: NotFound — it does not run here; WrongState — its agent does not answer, and that was required;
        Unavailable; Internal — it could not be paused. In the last and the second case it runs on.
        """
        ...

    async def resume_sandbox(self, request: StartSandbox) -> NodeSandbox:
        """From paused or kept to running: thawed, or a new machine that goes on from saved memory, where memory is
        kept and this node can go on from it (unless `request.keep_memory` is False), else a new machine that starts on
        the kept disk; `kept_memory` of the answer tells which. Then the guest agent takes its settings, as in a start.
        Its disk is the kept one, whatever `request.snapshot_id` says. For one that runs the answer is that of the
        start.

        Raises: NotFound — nothing of it is here; NoCapacity; Unavailable; Internal — it is still paused.
        """
        ...

    async def kill_sandbox(self, sandbox_id: SandboxId, *, keep_disk: bool = False) -> bool:
        """End it, running or paused: gone for its clients when this returns. False when it was not here; also ends
        a start that is under way. With `keep_disk` its disk stays as `kept` until `discard_sandbox`; a repetition
        without discards it."""
        ...

    async def discard_sandbox(self, sandbox_id: SandboxId) -> bool:
        """Remove what is paused or kept of it, for good. False when there was nothing. Raises WrongState: it runs."""
        ...

    async def snapshot_sandbox(
        self, sandbox_id: SandboxId, snapshot_id: SnapshotId, *, keep_memory: bool
    ) -> NodeSnapshot:
        """Save the state of a running, paused or kept one, which goes on as it was; a running one stands still
        meanwhile. Repeating it with the same `snapshot_id` returns the first answer. The answer comes when the disk
        is safe on this node; its chunks are stored behind. `keep_memory` is a wish.

        Raises: NotFound — the sandbox is not here; NoCapacity — the disk is full; Unavailable; Internal. In each
        case nothing is left of the snapshot and the sandbox goes on.
        """
        ...

    async def delete_snapshot(self, snapshot_id: SnapshotId) -> bool:
        """Remove it; sandboxes that were started from it go on. False when it was not here."""
        ...

    async def list_snapshots(self) -> tuple[NodeSnapshot, ...]:
        """Every snapshot that can be started from here."""
        ...

    def export_snapshot(self, snapshot_id: SnapshotId) -> AsyncIterator[bytes]:
        """Its manifest, then its chunks, packed (blobs/moving.py). A part that does not come within a minute ends it.

        Raises: NotFound — it is not here, or is deleted meanwhile; NoCapacity — the disk is full, and it was not stored
        yet; Unavailable; Internal — it cannot be read.
        """
        ...

    async def import_snapshot(self, wanted: ImportSnapshot, parts: AsyncIterator[bytes]) -> ImportedSnapshot:
        """Take in what `export_snapshot` of another node gave; what `parts` raises is raised. Repeating it with the
        same `snapshot_id` returns the first answer.

        Raises: Invalid — it is damaged, cut off, or another than was said; NotFound — no such build here; NoCapacity —
        no room on the disk; Unavailable; Internal. In each case nothing is left of it.
        """
        ...

    async def list_sandboxes(self) -> tuple[NodeSandbox, ...]:
        """Every sandbox that runs, is paused or kept here; one whose start is under way may be missing."""
        ...

    async def update_network(self, sandbox_id: SandboxId, egress: Egress) -> None:
        """Replace where a sandbox of this node may connect to, in one step; flows that are open and no longer allowed
        are cut. Idempotent. Raises NotFound when it does not run here."""
        ...

    async def read_usage(self, sandbox_id: SandboxId) -> SandboxUsage:
        """One reading. Raises NotFound when it does not run here."""
        ...

    async def read_logs(self, sandbox_id: SandboxId, *, start_ms: int, limit: int) -> tuple[LogEntry, ...]:
        """Lines from `start_ms` (milliseconds since 1970; 0: the oldest kept) on, oldest first, at most `limit`.
        Answers for a while after the end too; then, and for an unknown sandbox, empty."""
        ...

    def watch_exits(self) -> AsyncIterator[SandboxExit]:
        """Sandboxes that end by themselves from now on. Ends with Unavailable when the node goes away; what
        happened meanwhile is found by comparing `list_sandboxes`, so no event is needed for correctness."""
        ...
