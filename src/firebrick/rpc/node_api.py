"""What the control plane may ask of a node: the typed twin of api/node.proto.

`NodeClient` is implemented by the gRPC client (rpc/node_client.py) and by the simulated node. Protobuf
messages stop at that client; nothing above it sees one. Every command is idempotent on `sandbox_id`.

Every method raises `Unavailable` when the node does not answer in time; then nothing is known about the
command's effect, and the caller must undo it or ask again.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from firebrick.model.ids import BuildId, MachineId, NodeId, SandboxId, TemplateId
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSandbox:
    """`access_token` empty leaves the guest agent's API open; `runtime` None takes the node's strongest."""

    sandbox_id: SandboxId
    template_id: TemplateId
    build_id: BuildId
    limits: Limits
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    access_token: str = field(default="", repr=False)
    runtime: RuntimeName | None = None
    deny_internet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSandbox:
    """A sandbox as its node sees it. `address` reaches the guest's ports from the edge of that node."""

    sandbox_id: SandboxId
    machine_id: MachineId
    runtime: RuntimeName
    address: str
    started_at: datetime
    from_warm: bool


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

        Raises: NoCapacity — no slot, memory or disk free; Unavailable; Internal — it cannot start, nothing is left.
        """
        ...

    async def kill_sandbox(self, sandbox_id: SandboxId) -> bool:
        """End it: gone for its clients when this returns. False when it did not run here; also ends a start
        that is under way."""
        ...

    async def list_sandboxes(self) -> tuple[NodeSandbox, ...]:
        """Every sandbox that runs here; one whose start is under way may be missing."""
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
