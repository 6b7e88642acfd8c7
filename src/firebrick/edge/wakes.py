"""Requests that wait for a paused sandbox to come back: one resume for all of them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from firebrick.catalog.base import CatalogReader
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError, Internal, LimitExceeded
from firebrick.model.ids import SandboxId

log = get_log("edge")

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Wakes:
    """A wake goes on when who asked for it has gone: the next one finds the sandbox running."""

    def __init__(self, catalog: CatalogReader, spawn: Spawn, *, per_sandbox_count: int) -> None:
        self._catalog = catalog
        self._spawn = spawn
        self._limit_count = per_sandbox_count
        self._waiting: dict[SandboxId, set[asyncio.Future[FirebrickError | None]]] = {}

    async def wake(self, sandbox_id: SandboxId) -> None:
        """Wait until it runs. Raises: as `CatalogReader.wake`, and LimitExceeded for too many who wait."""
        waiting = self._waiting.get(sandbox_id)
        if waiting is None:
            waiting = self._waiting[sandbox_id] = set()
            self._spawn(self._run(sandbox_id))
        if len(waiting) >= self._limit_count:
            raise LimitExceeded(f"{self._limit_count} requests wait for this sandbox to resume already")
        future: asyncio.Future[FirebrickError | None] = asyncio.get_running_loop().create_future()
        waiting.add(future)
        try:
            error = await future
        finally:
            waiting.discard(future)
        if error is not None:
            raise error

    async def _run(self, sandbox_id: SandboxId) -> None:
        error: FirebrickError | None = None
        try:
            await self._catalog.wake(sandbox_id)
        except FirebrickError as exc:
            error = exc
            log.info("edge.wake_refused", sandbox_id=sandbox_id, code=exc.code, detail=exc.detail)
        except Exception:  # the root of this task: a defect costs these requests, not the edge
            log.exception("edge.wake_failed", sandbox_id=sandbox_id)
            error = Internal("The sandbox could not be resumed")
        finally:
            for future in self._waiting.pop(sandbox_id):
                if not future.done():
                    future.set_result(error)
