"""The node agent over gRPC on a unix socket: converts, calls the agent, converts back."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc

from firebrick.linux.space import is_out_of_space
from firebrick.log import get_log
from firebrick.model.errors import DiskFull, FirebrickError, Internal, Invalid, Unavailable
from firebrick.model.ids import SandboxId, SnapshotId, is_sandbox_id, is_snapshot_id
from firebrick.rpc import convert
from firebrick.rpc import node_pb2 as pb
from firebrick.rpc.errors import CODE_TRAILER, status_of
from firebrick.rpc.node_api import NodeClient, StartSandbox
from firebrick.rpc.node_client import CHANNEL_OPTIONS
from firebrick.rpc.node_pb2_grpc import NodeServicer, add_NodeServicer_to_server

STOP_GRACE_S = 2.0
MAX_LOG_ENTRIES = 10_000
MAX_SOCKET_PATH_BYTES = 107

Answer = TypeVar("Answer")
log = get_log("node")


class NodeService(NodeServicer):  # type: ignore[misc]
    """One method per RPC of api/node.proto."""

    def __init__(self, node: NodeClient) -> None:
        self._node = node

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.NodeDescription:
        return convert.description_to_wire(await _ask(context, self._node.describe()))

    async def StartSandbox(self, request: pb.StartSandboxRequest, context: Any) -> pb.NodeSandbox:
        start = await _start_of(request, context)
        return convert.sandbox_to_wire(await _ask(context, self._node.start_sandbox(start)))

    async def PauseSandbox(self, request: pb.PauseSandboxRequest, context: Any) -> pb.PausedSandbox:
        return convert.paused_to_wire(await _ask(context, self._node.pause_sandbox(convert.pause_from_wire(request))))

    async def ResumeSandbox(self, request: pb.StartSandboxRequest, context: Any) -> pb.NodeSandbox:
        start = await _start_of(request, context)
        return convert.sandbox_to_wire(await _ask(context, self._node.resume_sandbox(start)))

    async def DiscardSandbox(self, request: pb.DiscardSandboxRequest, context: Any) -> pb.DiscardSandboxResponse:
        sandbox_id = SandboxId(request.sandbox_id)
        return pb.DiscardSandboxResponse(was_here=await _ask(context, self._node.discard_sandbox(sandbox_id)))

    async def SnapshotSandbox(self, request: pb.SnapshotSandboxRequest, context: Any) -> pb.NodeSnapshot:
        snapshot_id = await _check_snapshot_id(context, request.snapshot_id)
        saving = self._node.snapshot_sandbox(
            SandboxId(request.sandbox_id), snapshot_id, keep_memory=request.keep_memory
        )  # fmt: skip
        return convert.snapshot_to_wire(await _ask(context, saving))

    async def DeleteSnapshot(self, request: pb.DeleteSnapshotRequest, context: Any) -> pb.DeleteSnapshotResponse:
        snapshot_id = await _check_snapshot_id(context, request.snapshot_id)
        return pb.DeleteSnapshotResponse(was_here=await _ask(context, self._node.delete_snapshot(snapshot_id)))

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Any) -> pb.ListSnapshotsResponse:
        found = await _ask(context, self._node.list_snapshots())
        return pb.ListSnapshotsResponse(snapshots=[convert.snapshot_to_wire(snapshot) for snapshot in found])

    async def ExportSnapshot(self, request: pb.ExportSnapshotRequest, context: Any) -> AsyncIterator[pb.SnapshotPart]:
        snapshot_id = await _check_snapshot_id(context, request.snapshot_id)
        parts = self._node.export_snapshot(snapshot_id)
        while (part := await _ask(context, anext(parts, None))) is not None:
            yield pb.SnapshotPart(data=part)

    async def ImportSnapshot(
        self, steps: AsyncIterator[pb.ImportSnapshotRequest], context: Any
    ) -> AsyncIterator[pb.ImportSnapshotAnswer]:  # fmt: skip
        first = await anext(steps, None)
        try:
            wanted = convert.import_from_wire(first.head if first is not None else pb.ImportSnapshotHead())
        except ValueError as exc:
            await _refuse(context, Invalid(f"The import of a snapshot names what this node does not know: {exc}."))
        await _check_snapshot_id(context, wanted.snapshot_id)
        outcome = await _tried(self._node.import_snapshot(wanted, _parts(steps)))
        if isinstance(outcome, FirebrickError):
            log.warning("rpc.refused", code=outcome.code, message=outcome.message, detail=outcome.detail)
            refusal = pb.Refusal(code=outcome.code, message=outcome.message)
            yield pb.ImportSnapshotAnswer(refusal=refusal)
            # NOTE: a call that ends while its caller still sends fails there as broken, whatever was answered.
            async for _ in steps:
                pass
        else:
            yield pb.ImportSnapshotAnswer(imported=convert.imported_to_wire(outcome))

    async def KillSandbox(self, request: pb.KillSandboxRequest, context: Any) -> pb.KillSandboxResponse:
        killing = self._node.kill_sandbox(SandboxId(request.sandbox_id), keep_disk=request.keep_disk)
        return pb.KillSandboxResponse(was_running=await _ask(context, killing))

    async def ListSandboxes(self, request: pb.ListSandboxesRequest, context: Any) -> pb.ListSandboxesResponse:
        found = await _ask(context, self._node.list_sandboxes())
        return pb.ListSandboxesResponse(sandboxes=[convert.sandbox_to_wire(sandbox) for sandbox in found])

    async def UpdateNetwork(self, request: pb.UpdateNetworkRequest, context: Any) -> pb.UpdateNetworkResponse:
        egress = convert.egress_from_wire(request.egress)
        await _ask(context, self._node.update_network(SandboxId(request.sandbox_id), egress))
        return pb.UpdateNetworkResponse()

    async def ReadUsage(self, request: pb.ReadUsageRequest, context: Any) -> pb.SandboxUsage:
        return convert.usage_to_wire(await _ask(context, self._node.read_usage(SandboxId(request.sandbox_id))))

    async def ReadLogs(self, request: pb.ReadLogsRequest, context: Any) -> pb.ReadLogsResponse:
        # NOTE: the id names a file, so it is checked before it goes anywhere.
        sandbox_id = await _check_id(context, SandboxId(request.sandbox_id))
        limit = min(request.limit, MAX_LOG_ENTRIES)
        reading = self._node.read_logs(sandbox_id, start_ms=request.start_ms, limit=limit)
        return pb.ReadLogsResponse(entries=[convert.log_to_wire(entry) for entry in await _ask(context, reading)])

    async def WatchExits(self, request: pb.WatchExitsRequest, context: Any) -> AsyncIterator[pb.SandboxExit]:
        try:
            async for ended in self._node.watch_exits():
                yield convert.exit_to_wire(ended)
        except FirebrickError as exc:
            await _refuse(context, exc)


class NodeServer:
    """Serves a node on a socket that only its owner may open."""

    def __init__(self, node: NodeClient, socket: Path) -> None:
        self._socket = socket
        self._node = node
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen. A socket file that a killed process left is replaced. Raises Internal."""
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH_BYTES:
            raise Invalid(f"The path {self._socket} is too long for a socket; choose a shorter data_dir.")
        # NOTE: bound where only we can look, and moved into place when its mode is set: a chmod in place would
        # leave a moment for others, and a umask would hold for every thread of this process.
        private = self._socket.parent / f".{self._socket.stem}"
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        hidden = private / "s"
        hidden.unlink(missing_ok=True)
        server = grpc.aio.server(options=CHANNEL_OPTIONS)
        add_NodeServicer_to_server(NodeService(self._node), server)
        try:
            server.add_insecure_port(f"unix:{hidden}")
            hidden.chmod(0o600)
            hidden.rename(self._socket)
            private.rmdir()
        except (RuntimeError, OSError) as exc:
            raise Internal(f"The socket {self._socket} could not be opened.", detail=str(exc)) from exc
        await server.start()
        self._server = server

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)
            self._socket.unlink(missing_ok=True)


async def _parts(steps: AsyncIterator[pb.ImportSnapshotRequest]) -> AsyncIterator[bytes]:
    """Raises Unavailable: whoever sent them has gone before the end."""
    async for step in steps:
        if step.is_whole:
            return
        yield step.part.data
    raise Unavailable("The snapshot stopped coming before its end.")


async def _ask(context: Any, asking: Awaitable[Answer]) -> Answer:
    outcome = await _tried(asking)
    if isinstance(outcome, FirebrickError):
        await _refuse(context, outcome)
    return outcome


async def _tried(asking: Awaitable[Answer]) -> Answer | FirebrickError:
    """What it answers, or what its caller is told instead."""
    try:
        return await asking
    except FirebrickError as exc:
        return told(exc)
    except asyncio.CancelledError:
        raise
    except Exception as exc:
        if is_out_of_space(exc):
            return told(exc)
        # Task root of a request: the caller gets our error, the log gets the chain.
        log.exception("rpc.failed")
        return Internal("The node agent failed; its log tells why.", detail=repr(exc))


def told(failure: Exception) -> FirebrickError:
    """What the control plane hears of it: a disk without room is nobody's mistake and passes, whatever failed by it."""
    if is_out_of_space(failure) and not isinstance(failure, DiskFull):
        doing = failure.message if isinstance(failure, FirebrickError) else "It could not be written down."
        return DiskFull(
            f"{doing} The disk of its node is full: free space there, then try again.", detail=repr(failure)
        )
    return failure if isinstance(failure, FirebrickError) else Internal("The node agent failed.", detail=repr(failure))


async def _start_of(request: pb.StartSandboxRequest, context: Any) -> StartSandbox:
    try:
        start = convert.start_from_wire(request)
    except ValueError as exc:
        await _refuse(context, Invalid(f"The start of a sandbox names what this node does not know: {exc}."))
    await _check_id(context, start.sandbox_id)
    if start.snapshot_id is not None:
        await _check_snapshot_id(context, start.snapshot_id)
    return start


async def _check_snapshot_id(context: Any, text: str) -> SnapshotId:
    # NOTE: it names files, so it is checked before it goes anywhere.
    if not is_snapshot_id(text):
        await _refuse(context, Invalid(f"'{text}' is not a snapshot id."))
    return SnapshotId(text)


async def _check_id(context: Any, sandbox_id: SandboxId) -> SandboxId:
    if not is_sandbox_id(sandbox_id):
        await _refuse(context, Invalid(f"'{sandbox_id}' is not a sandbox id."))
    return sandbox_id


async def _refuse(context: Any, error: FirebrickError) -> NoReturn:
    if error.detail:
        log.warning("rpc.refused", code=error.code, message=error.message, detail=error.detail)
    await context.abort(status_of(error), error.message, trailing_metadata=((CODE_TRAILER, error.code),))
    raise AssertionError("abort raises")
