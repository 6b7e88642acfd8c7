"""The catalog of one machine, edge's side: a table that follows the control plane's over its socket."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio

from firebrick.catalog import catalog_pb2 as pb
from firebrick.catalog import catalog_pb2_grpc as pb_grpc
from firebrick.catalog.base import WAKE_TIMEOUT_S, Route, Tombstone
from firebrick.catalog.feed import ChangeFeed
from firebrick.catalog.table import RouteTable
from firebrick.catalog.wire import OPTIONS, from_message
from firebrick.clock import Clock
from firebrick.log import get_log
from firebrick.model.errors import BY_CODE, Internal, Unavailable
from firebrick.model.ids import SandboxId

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 1.0
ANSWER_S = 2.0
"""What the control plane has beyond the time of a wake to say that it ran out of time."""

log = get_log("catalog")


class CatalogFollower:
    """CatalogReader. Reconnects for ever; keeps its table while the control plane is away.

    A snapshot is applied as a difference: a consumer of `changes` hears only of what is new, and of the routes
    that are gone.
    """

    def __init__(self, socket: Path, clock: Clock, *, patience: float = 1.0) -> None:
        self._socket = socket
        self._clock = clock
        self._patience = patience
        self._table = RouteTable()
        self._feed = ChangeFeed()
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow. `close` ends it."""
        self._task = asyncio.create_task(self._follow_for_ever(), name="catalog-follower")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def wait_ready(self) -> None:
        """Return when the first table has arrived."""
        await self._ready.wait()

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    def route(self, sandbox_id: SandboxId) -> Route | None:
        return self._table.routes.get(sandbox_id)

    def tombstone(self, sandbox_id: SandboxId) -> Tombstone | None:
        return self._table.tombstones.get(sandbox_id)

    def routes(self) -> tuple[Route, ...]:
        return tuple(self._table.routes.values())

    def changes(self) -> AsyncIterator[Route | Tombstone]:
        return self._feed.subscribe()

    async def wake(self, sandbox_id: SandboxId) -> None:
        # A channel of its own: the table's is closed with every loss, and waking is rare.
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=OPTIONS) as channel:
            try:
                reply = await pb_grpc.CatalogStub(channel).Wake(
                    pb.WakeRequest(sandbox_id=sandbox_id), timeout=WAKE_TIMEOUT_S * self._patience + ANSWER_S
                )
            except grpc.aio.AioRpcError as exc:
                raise Unavailable(
                    "The control plane does not answer, so the sandbox cannot be resumed now. Try again.",
                    detail=f"{exc.code().name}: {exc.details()}",
                ) from exc
        if reply.code:
            raise BY_CODE.get(reply.code, Internal)(reply.message)

    async def _follow_for_ever(self) -> None:
        delay = FIRST_DELAY_S
        is_connected = True
        while True:
            had_snapshot = False
            try:
                async for _ in self._follow():
                    if not had_snapshot:
                        log.info("catalog.connected", route_count=len(self._table.routes))
                    had_snapshot = is_connected = True
            except grpc.aio.AioRpcError as exc:
                if is_connected:
                    # Once per loss: the control plane may be away for hours.
                    log.warning("catalog.disconnected", status=exc.code().name, route_count=len(self._table.routes))
                is_connected = False
            except Exception:  # the root of this task: a defect must not end the following of routes
                log.exception("catalog.follow_failed")
            delay = FIRST_DELAY_S if had_snapshot else min(delay * 2, LONGEST_DELAY_S)
            await self._clock.sleep(delay)

    async def _follow(self) -> AsyncIterator[int]:
        """One connection; yields each revision after it was applied, acted on and acknowledged."""
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=OPTIONS) as channel:
            stream = pb_grpc.CatalogStub(channel).Follow()
            async for message in stream:
                self._apply(message)
                await self._feed.settled()
                await stream.write(pb.Ack(revision=message.revision))
                yield message.revision

    def _apply(self, message: pb.Change) -> None:
        routes, tombstones = from_message(message)
        if message.is_snapshot:
            self._feed.put(self._table.replace(routes, tombstones))
            self._ready.set()
            return
        changes: tuple[Route | Tombstone, ...] = (*tombstones, *routes)
        for change in changes:
            self._table.apply(change)
            self._feed.put((change,))
