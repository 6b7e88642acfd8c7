"""`NodeClient` over gRPC: deadlines on every call, reconnects by itself, raises the classes that the node raised."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import grpc

from firebrick.model.egress import Egress
from firebrick.model.errors import Unavailable
from firebrick.model.ids import SandboxId, SnapshotId
from firebrick.rpc import convert
from firebrick.rpc import node_pb2 as pb
from firebrick.rpc.errors import error_from, error_of
from firebrick.rpc.node_api import (
    ImportedSnapshot,
    ImportSnapshot,
    LogEntry,
    NodeDescription,
    NodeSandbox,
    NodeSnapshot,
    PausedSandbox,
    PauseSandbox,
    SandboxExit,
    SandboxUsage,
    StartSandbox,
)
from firebrick.rpc.node_pb2_grpc import NodeStub

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A restarting node is back within a second; gRPC's own patience grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
)

DESCRIBE_S = 3.0
# Longer than a node gives a machine to become ready, twice: a warm machine that went bad is replaced by a cold one.
START_S = 120.0
KILL_S = 20.0
# Both read or copy all that a sandbox has written.
PAUSE_S = 120.0
SNAPSHOT_S = 300.0
READ_S = 5.0
PART_S = 60.0
"""For one part of a snapshot on its way; the first may have to wait until it is stored."""

Answer = TypeVar("Answer")


class GrpcNodeClient:
    """Client of the node at `target`, such as `unix:/path` or `host:port`. Connects when first used.

    `patience` is what every deadline is multiplied by.
    """

    def __init__(self, target: str, *, patience: float = 1.0) -> None:
        self._target = target
        self._patience = patience
        self._channel: grpc.aio.Channel | None = None
        self._made_stub: Any = None

    async def describe(self) -> NodeDescription:
        call = self._stub.Describe(pb.DescribeRequest(), timeout=DESCRIBE_S * self._patience)
        return convert.description_from_wire(await _answer(call, "describe"))

    async def start_sandbox(self, request: StartSandbox) -> NodeSandbox:
        call = self._stub.StartSandbox(convert.start_to_wire(request), timeout=START_S * self._patience)
        return convert.sandbox_from_wire(await _answer(call, f"start {request.sandbox_id}"))

    async def pause_sandbox(self, request: PauseSandbox) -> PausedSandbox:
        call = self._stub.PauseSandbox(convert.pause_to_wire(request), timeout=PAUSE_S * self._patience)
        return convert.paused_from_wire(await _answer(call, f"pause {request.sandbox_id}"))

    async def resume_sandbox(self, request: StartSandbox) -> NodeSandbox:
        call = self._stub.ResumeSandbox(convert.start_to_wire(request), timeout=START_S * self._patience)
        return convert.sandbox_from_wire(await _answer(call, f"resume {request.sandbox_id}"))

    async def discard_sandbox(self, sandbox_id: SandboxId) -> bool:
        call = self._stub.DiscardSandbox(
            pb.DiscardSandboxRequest(sandbox_id=sandbox_id), timeout=KILL_S * self._patience
        )
        return bool((await _answer(call, f"discard {sandbox_id}")).was_here)

    async def snapshot_sandbox(
        self, sandbox_id: SandboxId, snapshot_id: SnapshotId, *, keep_memory: bool
    ) -> NodeSnapshot:
        request = pb.SnapshotSandboxRequest(
            sandbox_id=sandbox_id, snapshot_id=snapshot_id, keep_memory=keep_memory
        )  # fmt: skip
        call = self._stub.SnapshotSandbox(request, timeout=SNAPSHOT_S * self._patience)
        return convert.snapshot_from_wire(await _answer(call, f"snapshot {sandbox_id}"))

    async def delete_snapshot(self, snapshot_id: SnapshotId) -> bool:
        call = self._stub.DeleteSnapshot(
            pb.DeleteSnapshotRequest(snapshot_id=snapshot_id), timeout=KILL_S * self._patience
        )
        return bool((await _answer(call, f"delete {snapshot_id}")).was_here)

    async def list_snapshots(self) -> tuple[NodeSnapshot, ...]:
        call = self._stub.ListSnapshots(pb.ListSnapshotsRequest(), timeout=READ_S * self._patience)
        return tuple(convert.snapshot_from_wire(wire) for wire in (await _answer(call, "snapshots")).snapshots)

    async def export_snapshot(self, snapshot_id: SnapshotId) -> AsyncIterator[bytes]:
        stream = self._stub.ExportSnapshot(pb.ExportSnapshotRequest(snapshot_id=snapshot_id))
        patience_s = SNAPSHOT_S * self._patience
        try:
            while True:
                async with asyncio.timeout(patience_s):
                    part = await stream.read()
                if part is grpc.aio.EOF:
                    return
                yield part.data
                patience_s = PART_S * self._patience
        except grpc.aio.AioRpcError as exc:
            raise error_of(exc, f"export {snapshot_id}") from exc
        except TimeoutError as exc:
            raise Unavailable(f"The node went silent while it exported {snapshot_id}.") from exc
        finally:
            stream.cancel()

    async def import_snapshot(self, wanted: ImportSnapshot, parts: AsyncIterator[bytes]) -> ImportedSnapshot:
        call = self._stub.ImportSnapshot()
        answering = asyncio.ensure_future(call.read())
        sending = asyncio.ensure_future(self._send(call, wanted, parts))
        try:
            await asyncio.wait((answering, sending), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                # Raises what the parts raised.
                await sending
            async with asyncio.timeout(SNAPSHOT_S * self._patience):
                answer = await answering
        except grpc.aio.AioRpcError as exc:
            raise error_of(exc, f"import {wanted.snapshot_id}") from exc
        except TimeoutError as exc:
            raise Unavailable(f"The node went silent while it imported {wanted.snapshot_id}.") from exc
        finally:
            sending.cancel()
            call.cancel()
            await asyncio.wait((answering, sending))
        if answer is grpc.aio.EOF:
            raise Unavailable(f"The node did not answer: import {wanted.snapshot_id}.")
        if answer.WhichOneof("answer") == "refusal":
            raise error_from(answer.refusal.code, answer.refusal.message)
        return convert.imported_from_wire(answer.imported)

    async def _send(self, call: Any, wanted: ImportSnapshot, parts: AsyncIterator[bytes]) -> None:
        """Raises TimeoutError, AioRpcError, and what `parts` raises."""

        async def send(message: pb.ImportSnapshotRequest) -> None:
            async with asyncio.timeout(PART_S * self._patience):
                await call.write(message)

        await send(pb.ImportSnapshotRequest(head=convert.import_to_wire(wanted)))
        async for part in parts:
            await send(pb.ImportSnapshotRequest(part=pb.SnapshotPart(data=part)))
        await send(pb.ImportSnapshotRequest(is_whole=True))
        await call.done_writing()

    async def kill_sandbox(self, sandbox_id: SandboxId, *, keep_disk: bool = False) -> bool:
        request = pb.KillSandboxRequest(sandbox_id=sandbox_id, keep_disk=keep_disk)
        call = self._stub.KillSandbox(request, timeout=KILL_S * self._patience)
        return bool((await _answer(call, f"kill {sandbox_id}")).was_running)

    async def list_sandboxes(self) -> tuple[NodeSandbox, ...]:
        call = self._stub.ListSandboxes(pb.ListSandboxesRequest(), timeout=READ_S * self._patience)
        return tuple(convert.sandbox_from_wire(wire) for wire in (await _answer(call, "list")).sandboxes)

    async def update_network(self, sandbox_id: SandboxId, egress: Egress) -> None:
        request = pb.UpdateNetworkRequest(sandbox_id=sandbox_id, egress=convert.egress_to_wire(egress))
        await _answer(self._stub.UpdateNetwork(request, timeout=READ_S * self._patience), f"network of {sandbox_id}")

    async def read_usage(self, sandbox_id: SandboxId) -> SandboxUsage:
        call = self._stub.ReadUsage(pb.ReadUsageRequest(sandbox_id=sandbox_id), timeout=READ_S * self._patience)
        return convert.usage_from_wire(await _answer(call, f"usage of {sandbox_id}"))

    async def read_logs(self, sandbox_id: SandboxId, *, start_ms: int, limit: int) -> tuple[LogEntry, ...]:
        request = pb.ReadLogsRequest(sandbox_id=sandbox_id, start_ms=start_ms, limit=limit)
        answer = await _answer(self._stub.ReadLogs(request, timeout=READ_S * self._patience), f"logs of {sandbox_id}")
        return tuple(convert.log_from_wire(wire) for wire in answer.entries)

    async def watch_exits(self) -> AsyncIterator[SandboxExit]:
        stream = self._stub.WatchExits(pb.WatchExitsRequest())
        try:
            async for wire in stream:
                yield convert.exit_from_wire(wire)
        except grpc.aio.AioRpcError as exc:
            raise error_of(exc, "watch exits") from exc
        finally:
            stream.cancel()
        raise Unavailable("The node ended its stream of exits.")

    async def close(self) -> None:
        if self._channel is not None:
            channel, self._channel, self._made_stub = self._channel, None, None
            await channel.close()

    @property
    def _stub(self) -> Any:
        # Made on first use: a channel belongs to the loop that runs then.
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS)
            self._made_stub = NodeStub(self._channel)
        return self._made_stub


async def _answer(call: Awaitable[Answer], what: str) -> Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as exc:
        raise error_of(exc, what) from exc
