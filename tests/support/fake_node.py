"""A node in memory that keeps the promises of `NodeClient`, and a catalog likewise; with knobs for faults."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from firebrick.blobs.manifest import Manifest, StoredFile, encode_manifest
from firebrick.catalog.base import Route, Tombstone, Waker
from firebrick.clock import Clock
from firebrick.model.egress import Egress
from firebrick.model.errors import MemoryRefused, NoCapacity, NotFound, Unavailable, WrongState
from firebrick.model.ids import BuildId, MachineId, NodeId, SandboxId, SnapshotId, new_machine_id
from firebrick.model.machine import ExitCause, RuntimeName
from firebrick.rpc.node_api import (
    ImportedSnapshot,
    ImportSnapshot,
    LogEntry,
    NodeDescription,
    NodeSandbox,
    NodeSandboxState,
    NodeSnapshot,
    PausedSandbox,
    PauseSandbox,
    SandboxExit,
    SandboxUsage,
    StartSandbox,
)

_EMPTY_DISK = StoredFile(name="disk", size_bytes=1 << 20, chunks=())
EMPTY_ARCHIVE = (
    encode_manifest(Manifest(name="", stored_bytes=0, chunk_bytes=1 << 20, about={}, files=(_EMPTY_DISK,))),
)


class FakeNode:
    """`before` and `after` hold functions that run around a method: raise there to lose a request or an answer.
    `can_freeze` False: a pause keeps the disk only, whatever was wished."""

    def __init__(self, node_id: NodeId, build_id: BuildId, clock: Clock) -> None:
        self.description = NodeDescription(
            node_id=node_id, version="test", runtimes=(RuntimeName.SIM,), builds=frozenset({build_id}),
            millicpu=400_000, memory_mib=400_000, disk_mib=4_000_000, free_slot_count=400, starting_count=0,
            warm_count=0,
        )  # fmt: skip
        self.running: dict[SandboxId, NodeSandbox] = {}
        self.kept: dict[SandboxId, NodeSandbox] = {}
        """Paused ones and those in the grace bin."""
        self.snapshots: dict[SnapshotId, NodeSnapshot] = {}
        self.archives: dict[SnapshotId, tuple[bytes, ...]] = {}
        """The parts of those that came from elsewhere; the others are of an empty disk."""
        self.memory_refusal = ""
        """Why nothing goes on from a snapshot's memory here."""
        self.egress: dict[SandboxId, Egress] = {}
        self.can_freeze = True
        self.requests: dict[SandboxId, StartSandbox] = {}
        self.logs: dict[SandboxId, list[LogEntry]] = {}
        self.is_down = False
        self.is_silent = False
        """Guest agents do not answer."""
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}
        self.start_gate: asyncio.Event | None = None
        self._clock = clock
        self._listeners: list[asyncio.Queue[SandboxExit | None]] = []

    def go_down(self) -> None:
        """The agent's process is gone; what it runs goes on."""
        self.is_down = True
        for listener in self._listeners:
            listener.put_nowait(None)

    def come_back(self) -> None:
        self.is_down = False

    def end(self, sandbox_id: SandboxId, cause: ExitCause, *, detail: str = "", is_heard: bool = True) -> None:
        """A machine ends by itself."""
        ended = self.running.pop(sandbox_id)
        event = SandboxExit(
            sandbox_id=sandbox_id, machine_id=ended.machine_id, cause=cause, exit_code=1, detail=detail
        )  # fmt: skip
        for listener in self._listeners if is_heard else ():
            listener.put_nowait(event)

    def reboot(self) -> None:
        """The host comes back: what ran is gone, what was paused is there without its memory."""
        self.running.clear()
        self.kept = {item: replace(sandbox, keeps_memory=False, address="") for item, sandbox in self.kept.items()}

    @property
    def is_watched(self) -> bool:
        return bool(self._listeners)

    def _enter(self, method: str) -> None:
        if self.is_down:
            raise Unavailable("The node does not answer.")
        self.before.get(method, lambda: None)()

    def _leave(self, method: str) -> None:
        self.after.get(method, lambda: None)()

    async def describe(self) -> NodeDescription:
        self._enter("describe")
        return replace(self.description, free_slot_count=self.description.free_slot_count - len(self.running))

    async def start_sandbox(self, request: StartSandbox) -> NodeSandbox:
        self._enter("start_sandbox")
        if self.start_gate is not None:
            await self.start_gate.wait()
        if request.sandbox_id in self.kept:
            raise WrongState("It is paused here.")
        if request.snapshot_id is not None and request.snapshot_id not in self.snapshots:
            raise NotFound("There is no such snapshot here.")
        if request.snapshot_id is not None and self.memory_refusal and request.keep_memory:
            raise MemoryRefused(self.memory_refusal)
        if request.sandbox_id not in self.running:
            self._run(request)
        self._leave("start_sandbox")
        return self.running[request.sandbox_id]

    def _run(self, request: StartSandbox) -> None:
        if len(self.running) >= self.description.free_slot_count:
            raise NoCapacity("Every slot is taken.")
        machine_id: MachineId = new_machine_id()
        self.requests[request.sandbox_id] = request
        self.running[request.sandbox_id] = NodeSandbox(
            sandbox_id=request.sandbox_id, machine_id=machine_id, runtime=RuntimeName.SIM,
            address="10.111.0.1", started_at=self._clock.now(), from_warm=False,
        )  # fmt: skip

    async def pause_sandbox(self, request: PauseSandbox) -> PausedSandbox:
        self._enter("pause_sandbox")
        found = self.running.pop(request.sandbox_id, None) or self.kept.get(request.sandbox_id)
        if found is None:
            raise NotFound("It does not run here.")
        was_running = found.state is NodeSandboxState.RUNNING
        keeps_memory = request.keep_memory and self.can_freeze and (was_running or found.keeps_memory)
        paused = replace(
            found, state=NodeSandboxState.PAUSED, keeps_memory=keeps_memory, kept_memory=False,
            address=found.address if keeps_memory else "", paused_at=found.paused_at or self._clock.now(),
        )  # fmt: skip
        self.kept[request.sandbox_id] = paused
        self._leave("pause_sandbox")
        assert paused.paused_at is not None
        return PausedSandbox(
            sandbox_id=paused.sandbox_id, machine_id=paused.machine_id, keeps_memory=keeps_memory,
            paused_at=paused.paused_at, disk_bytes=4, is_silent=self.is_silent,
        )  # fmt: skip

    async def resume_sandbox(self, request: StartSandbox) -> NodeSandbox:
        self._enter("resume_sandbox")
        if request.sandbox_id not in self.running:
            paused = self.kept.get(request.sandbox_id)
            if paused is None:
                raise NotFound("Nothing of it is kept here.")
            if paused.keeps_memory and request.keep_memory:
                self.running[request.sandbox_id] = replace(
                    paused,
                    state=NodeSandboxState.RUNNING,
                    keeps_memory=False,
                    kept_memory=True,
                    paused_at=None,
                    saved_bytes=0,
                )
                self.requests[request.sandbox_id] = request
            else:
                self._run(request)
            del self.kept[request.sandbox_id]
        self._leave("resume_sandbox")
        return self.running[request.sandbox_id]

    async def kill_sandbox(self, sandbox_id: SandboxId, *, keep_disk: bool = False) -> bool:
        self._enter("kill_sandbox")
        found = self.running.pop(sandbox_id, None) or self.kept.pop(sandbox_id, None)
        if found is not None and keep_disk:
            self.kept[sandbox_id] = replace(
                found, state=NodeSandboxState.KEPT, keeps_memory=False, kept_memory=False, address="",
                paused_at=found.paused_at or self._clock.now(),
            )  # fmt: skip
        self._leave("kill_sandbox")
        return found is not None

    async def discard_sandbox(self, sandbox_id: SandboxId) -> bool:
        self._enter("discard_sandbox")
        if sandbox_id in self.running:
            raise WrongState("It runs.")
        was_here = self.kept.pop(sandbox_id, None) is not None
        self._leave("discard_sandbox")
        return was_here

    async def snapshot_sandbox(
        self, sandbox_id: SandboxId, snapshot_id: SnapshotId, *, keep_memory: bool
    ) -> NodeSnapshot:
        self._enter("snapshot_sandbox")
        if snapshot_id not in self.snapshots:
            if sandbox_id not in self.running and sandbox_id not in self.kept:
                raise NotFound("It is not here.")
            self.snapshots[snapshot_id] = NodeSnapshot(
                snapshot_id=snapshot_id, build_id=self.requests[sandbox_id].build_id, runtime=RuntimeName.SIM,
                keeps_memory=False, disk_bytes=4, stored_bytes=2, created_at=self._clock.now(),
            )  # fmt: skip
        self._leave("snapshot_sandbox")
        return self.snapshots[snapshot_id]

    async def delete_snapshot(self, snapshot_id: SnapshotId) -> bool:
        self._enter("delete_snapshot")
        was_here = self.snapshots.pop(snapshot_id, None) is not None
        self._leave("delete_snapshot")
        return was_here

    async def list_snapshots(self) -> tuple[NodeSnapshot, ...]:
        self._enter("list_snapshots")
        return tuple(self.snapshots.values())

    async def export_snapshot(self, snapshot_id: SnapshotId) -> AsyncIterator[bytes]:
        self._enter("export_snapshot")
        if snapshot_id not in self.snapshots:
            raise NotFound("There is no such snapshot here.")
        for part in self.archives.get(snapshot_id, EMPTY_ARCHIVE):
            yield part
        self._leave("export_snapshot")

    async def import_snapshot(self, wanted: ImportSnapshot, parts: AsyncIterator[bytes]) -> ImportedSnapshot:
        self._enter("import_snapshot")
        if wanted.snapshot_id not in self.snapshots:
            self.archives[wanted.snapshot_id] = tuple([part async for part in parts])
            self.snapshots[wanted.snapshot_id] = NodeSnapshot(
                snapshot_id=wanted.snapshot_id, build_id=wanted.build_id, runtime=wanted.runtime,
                keeps_memory=wanted.keeps_memory, disk_bytes=4, stored_bytes=None, created_at=self._clock.now(),
            )  # fmt: skip
        self._leave("import_snapshot")
        return ImportedSnapshot(
            snapshot=self.snapshots[wanted.snapshot_id],
            memory_refusal=self.memory_refusal if wanted.keeps_memory else "",
        )

    async def list_sandboxes(self) -> tuple[NodeSandbox, ...]:
        self._enter("list_sandboxes")
        return (*self.running.values(), *self.kept.values())

    async def update_network(self, sandbox_id: SandboxId, egress: Egress) -> None:
        self._enter("update_network")
        if sandbox_id not in self.running:
            raise NotFound("It does not run here.")
        self.egress[sandbox_id] = egress

    async def read_usage(self, sandbox_id: SandboxId) -> SandboxUsage:
        self._enter("read_usage")
        if sandbox_id not in self.running:
            raise NotFound("It does not run here.")
        return SandboxUsage(
            timestamp=self._clock.now(), cpu_ns=1, cpu_used_pct=12.5, memory_bytes=2, memory_limit_bytes=3,
            disk_bytes=4, disk_limit_bytes=5, process_count=6,
        )  # fmt: skip

    async def read_logs(self, sandbox_id: SandboxId, *, start_ms: int, limit: int) -> tuple[LogEntry, ...]:
        self._enter("read_logs")
        lines = self.logs.get(sandbox_id, [])
        return tuple([line for line in lines if line.timestamp.timestamp() * 1000 >= start_ms][:limit])

    async def watch_exits(self) -> AsyncIterator[SandboxExit]:
        self._enter("watch_exits")
        listener: asyncio.Queue[SandboxExit | None] = asyncio.Queue()
        self._listeners.append(listener)
        try:
            while (event := await listener.get()) is not None:
                yield event
        finally:
            self._listeners.remove(listener)
        raise Unavailable("The node went away.")


class FakeCatalog:
    """Writer side of a catalog with no edge behind it."""

    def __init__(self) -> None:
        self.waker: Waker | None = None
        self.routes: dict[SandboxId, Route] = {}
        self.tombstones: dict[SandboxId, Tombstone] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}

    async def publish(self, route: Route) -> None:
        self.before.get("publish", lambda: None)()
        self.routes[route.sandbox_id] = route
        self.after.get("publish", lambda: None)()

    async def withdraw(self, sandbox_id: SandboxId, reason: str) -> None:
        self.before.get("withdraw", lambda: None)()
        self.routes.pop(sandbox_id, None)
        self.tombstones[sandbox_id] = Tombstone(sandbox_id=sandbox_id, reason=reason)
        self.after.get("withdraw", lambda: None)()

    async def replace_all(self, routes: Sequence[Route], tombstones: Sequence[Tombstone]) -> None:
        self.before.get("publish", lambda: None)()
        self.routes = {route.sandbox_id: route for route in routes}
        self.tombstones = {tombstone.sandbox_id: tombstone for tombstone in tombstones}
        self.after.get("publish", lambda: None)()
