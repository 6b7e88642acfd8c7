"""A node in memory that keeps the promises of `NodeClient`, and a catalog likewise; with knobs for faults."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from firebrick.catalog.base import Route, Tombstone
from firebrick.clock import Clock
from firebrick.model.errors import NoCapacity, NotFound, Unavailable
from firebrick.model.ids import BuildId, MachineId, NodeId, SandboxId, new_machine_id
from firebrick.model.machine import ExitCause, RuntimeName
from firebrick.rpc.node_api import (
    LogEntry,
    NodeDescription,
    NodeSandbox,
    SandboxExit,
    SandboxUsage,
    StartSandbox,
)


class FakeNode:
    """`before` and `after` hold functions that run around a method: raise there to lose a request or an answer."""

    def __init__(self, node_id: NodeId, build_id: BuildId, clock: Clock) -> None:
        self.description = NodeDescription(
            node_id=node_id, version="test", runtimes=(RuntimeName.SIM,), builds=frozenset({build_id}),
            millicpu=400_000, memory_mib=400_000, disk_mib=4_000_000, free_slot_count=400, starting_count=0,
            warm_count=0,
        )  # fmt: skip
        self.running: dict[SandboxId, NodeSandbox] = {}
        self.requests: dict[SandboxId, StartSandbox] = {}
        self.logs: dict[SandboxId, list[LogEntry]] = {}
        self.is_down = False
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
        if request.sandbox_id not in self.running:
            if len(self.running) >= self.description.free_slot_count:
                raise NoCapacity("Every slot is taken.")
            machine_id: MachineId = new_machine_id()
            self.requests[request.sandbox_id] = request
            self.running[request.sandbox_id] = NodeSandbox(
                sandbox_id=request.sandbox_id, machine_id=machine_id, runtime=RuntimeName.SIM,
                address="10.111.0.1", started_at=self._clock.now(), from_warm=False,
            )  # fmt: skip
        self._leave("start_sandbox")
        return self.running[request.sandbox_id]

    async def kill_sandbox(self, sandbox_id: SandboxId) -> bool:
        self._enter("kill_sandbox")
        was_running = self.running.pop(sandbox_id, None) is not None
        self._leave("kill_sandbox")
        return was_running

    async def list_sandboxes(self) -> tuple[NodeSandbox, ...]:
        self._enter("list_sandboxes")
        return tuple(self.running.values())

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
