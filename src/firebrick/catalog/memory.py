"""The catalog inside one process: writer and reader are the same object. For simulation and tests."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from firebrick.catalog.base import ACK_TIMEOUT_S, Route, Tombstone, Waker, run_waker
from firebrick.catalog.feed import ChangeFeed
from firebrick.catalog.table import RouteTable
from firebrick.model.ids import SandboxId


class MemoryCatalog:
    """CatalogWriter and CatalogReader; it is ready from the start."""

    def __init__(self) -> None:
        self._table = RouteTable()
        self._feed = ChangeFeed()
        self.waker: Waker | None = None

    async def publish(self, route: Route) -> None:
        await self._apply(route)

    async def withdraw(self, sandbox_id: SandboxId, reason: str) -> None:
        await self._apply(Tombstone(sandbox_id=sandbox_id, reason=reason))

    async def replace_all(self, routes: Sequence[Route], tombstones: Sequence[Tombstone]) -> None:
        self._feed.put(self._table.replace(routes, tombstones))
        await self._settle()

    async def _apply(self, change: Route | Tombstone) -> None:
        self._table.apply(change)
        self._feed.put((change,))
        await self._settle()

    async def _settle(self) -> None:
        try:
            async with asyncio.timeout(ACK_TIMEOUT_S):
                await self._feed.settled()
        except TimeoutError:
            pass

    @property
    def is_ready(self) -> bool:
        return True

    def route(self, sandbox_id: SandboxId) -> Route | None:
        return self._table.routes.get(sandbox_id)

    def tombstone(self, sandbox_id: SandboxId) -> Tombstone | None:
        return self._table.tombstones.get(sandbox_id)

    def routes(self) -> tuple[Route, ...]:
        return tuple(self._table.routes.values())

    async def wake(self, sandbox_id: SandboxId) -> None:
        await run_waker(self.waker, sandbox_id)

    def changes(self) -> AsyncIterator[Route | Tombstone]:
        return self._feed.subscribe()
