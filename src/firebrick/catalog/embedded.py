"""The catalog of one machine, control plane's side: a table in memory, served over a unix socket.

    publish/withdraw ─▶ table ─▶ one queue per follower ─▶ stream ─▶ follower acts ─▶ Ack(revision) ─▶ resolved

A follower that does not answer within ACK_TIMEOUT_S is logged once and not waited for again until it has
caught up: a hung edge must not slow down every create. The other side is `follower.py`.
"""

import asyncio
import os
import socket as sockets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from firebrick.catalog import catalog_pb2 as pb
from firebrick.catalog import catalog_pb2_grpc as pb_grpc
from firebrick.catalog.base import ACK_TIMEOUT_S, Route, Tombstone, Waker, run_waker
from firebrick.catalog.table import RouteTable
from firebrick.catalog.wire import OPTIONS, to_message
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError, Internal, Unavailable, WrongState
from firebrick.model.ids import SandboxId

QUEUE_LIMIT = 20_000
"""Changes a stuck follower may fall behind before it is cut off; it then starts again from a snapshot."""
STOP_GRACE_S = 0.2

log = get_log("catalog")


class _Follower:
    """One connected edge: what it must still be told, and how far it has confirmed."""

    def __init__(self, snapshot: pb.Change) -> None:
        self.queue: asyncio.Queue[pb.Change] = asyncio.Queue()
        self.queue.put_nowait(snapshot)
        self.acked = -1
        self.is_lagging = False
        self.is_cut_off = asyncio.Event()
        self._waiters: dict[int, asyncio.Future[None]] = {}

    def tell(self, message: pb.Change) -> None:
        if self.queue.qsize() >= QUEUE_LIMIT:
            self.is_cut_off.set()
        else:
            self.queue.put_nowait(message)

    def acknowledge(self, revision: int) -> None:
        self.acked = max(self.acked, revision)
        for waited in [number for number in self._waiters if number <= self.acked]:
            self._waiters.pop(waited).set_result(None)

    async def has_seen(self, revision: int) -> None:
        """Wait for that revision; returns as well when the follower goes away."""
        if self.acked < revision and not self.is_cut_off.is_set():
            future = self._waiters.setdefault(revision, asyncio.get_running_loop().create_future())
            await asyncio.shield(future)

    def gone(self) -> None:
        self.is_cut_off.set()
        for future in self._waiters.values():
            future.set_result(None)
        self._waiters.clear()


class EmbeddedCatalogServer:
    """CatalogWriter of a machine that has no Redis.

    `start` listens; followers are told nothing before the first `replace_all`, because a control plane that has
    just started would otherwise tell every edge that all sandboxes are gone.
    """

    def __init__(self, socket: Path, *, patience: float = 1.0) -> None:
        self.waker: Waker | None = None
        self._socket = socket
        self._patience = patience
        self._table = RouteTable()
        self._revision = 0
        self._is_filled = asyncio.Event()
        self._followers: set[_Follower] = set()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen on the socket, mode 0600; a socket file that nobody serves is replaced.

        Raises:
            WrongState: another process serves it.
            Unavailable: the socket can't be made there.
        """
        server = grpc.aio.server(options=OPTIONS)
        pb_grpc.add_CatalogServicer_to_server(self, server)
        _make_way(self._socket)
        # Bound within this block and without a turn of the loop: at no moment may others connect.
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{self._socket}")
        except RuntimeError as exc:
            raise Unavailable(f"Cannot listen on the catalog socket {self._socket}.", detail=str(exc)) from exc
        finally:
            os.umask(mask)
        await server.start()
        self._server = server

    async def close(self) -> None:
        """End every stream and stop listening. Idempotent. Followers keep their tables."""
        server, self._server = self._server, None
        if server is not None:
            for follower in list(self._followers):
                follower.gone()
            await server.stop(STOP_GRACE_S)
            self._socket.unlink(missing_ok=True)

    async def publish(self, route: Route) -> None:
        await self._announce(route)

    async def withdraw(self, sandbox_id: SandboxId, reason: str) -> None:
        if sandbox_id not in self._table.routes:
            known = self._table.tombstones.get(sandbox_id)
            if known is not None and known.reason == reason:
                return
        await self._announce(Tombstone(sandbox_id=sandbox_id, reason=reason))

    async def replace_all(self, routes: Sequence[Route], tombstones: Sequence[Tombstone]) -> None:
        """Make these all there is: what the store says at the start. Tombstones oldest first."""
        self._table.replace(routes, tombstones)
        self._revision += 1
        self._is_filled.set()
        await self._tell(self._snapshot())

    def follower_count(self) -> int:
        return len(self._followers)

    async def _announce(self, change: Route | Tombstone) -> None:
        self._table.apply(change)
        self._revision += 1
        await self._tell(to_message(self._revision, (change,)))

    def _snapshot(self) -> pb.Change:
        everything: tuple[Route | Tombstone, ...] = (*self._table.routes.values(), *self._table.tombstones.values())
        return to_message(self._revision, everything, is_snapshot=True)

    async def _tell(self, message: pb.Change) -> None:
        revision = message.revision
        for follower in self._followers:
            follower.tell(message)
        waited_for = [follower for follower in self._followers if not follower.is_lagging]
        try:
            async with asyncio.timeout(ACK_TIMEOUT_S):
                for follower in waited_for:
                    await follower.has_seen(revision)
        except TimeoutError:
            for follower in waited_for:
                if follower.acked < revision and not follower.is_lagging:
                    follower.is_lagging = True
                    log.warning("catalog.follower_lags", revision=revision, acked=follower.acked)

    async def Follow(self, acks: AsyncIterator[pb.Ack], context: Any) -> None:
        """Serve one follower until it or we go away (the name is the proto's)."""
        await self._is_filled.wait()
        follower = _Follower(self._snapshot())
        self._followers.add(follower)
        log.info("catalog.follower_connected", revision=self._revision)
        try:
            async with asyncio.TaskGroup() as tasks:
                children = [
                    tasks.create_task(self._send(follower, context)),
                    tasks.create_task(self._receive(follower, acks)),
                ]
                await follower.is_cut_off.wait()
                for child in children:
                    child.cancel()
        finally:
            self._followers.discard(follower)
            follower.gone()
            log.info("catalog.follower_gone", acked=follower.acked)

    async def Wake(self, request: pb.WakeRequest, context: Any) -> pb.WakeReply:
        """Answer a follower's `wake` (the name is the proto's)."""
        try:
            await run_waker(self.waker, SandboxId(request.sandbox_id), patience=self._patience)
        except FirebrickError as exc:
            log.info("catalog.wake_refused", sandbox_id=request.sandbox_id, code=exc.code, detail=exc.detail)
            return pb.WakeReply(code=exc.code, message=exc.message)
        except Exception:  # the root of this call: the edge must have an answer
            log.exception("catalog.wake_failed", sandbox_id=request.sandbox_id)
            return pb.WakeReply(code=Internal.code, message="The sandbox could not be resumed.")
        return pb.WakeReply()

    async def _send(self, follower: _Follower, context: Any) -> None:
        while True:
            await context.write(await follower.queue.get())

    async def _receive(self, follower: _Follower, acks: AsyncIterator[pb.Ack]) -> None:
        async for ack in acks:
            follower.acknowledge(ack.revision)
            if follower.is_lagging and follower.acked >= self._revision:
                follower.is_lagging = False
                log.info("catalog.follower_caught_up", revision=follower.acked)
        follower.is_cut_off.set()


def _make_way(path: Path) -> None:
    """Remove a socket file left by a killed process; refuse when someone answers on it."""
    if not path.exists():
        return
    if not path.is_socket():
        raise Unavailable(f"{path} is in the way of the catalog socket and not a socket.")
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as exc:
            raise Unavailable(f"{path} is in the way of the catalog socket.", detail=str(exc)) from exc
    raise WrongState(f"Another process already serves the catalog at {path}.")
