"""Tell everyone who watches that a sandbox ended by itself. Lossy: a slow watcher loses the oldest."""

import asyncio
from collections.abc import AsyncIterator

from firebrick.model.errors import Unavailable
from firebrick.rpc.node_api import SandboxExit

BACKLOG_COUNT = 1_000


class ExitBroadcast:
    def __init__(self) -> None:
        self._watchers: set[asyncio.Queue[SandboxExit | None]] = set()

    def watch(self) -> AsyncIterator[SandboxExit]:
        """From this call on, whenever it is iterated. Ends with Unavailable when the node closes."""
        queue: asyncio.Queue[SandboxExit | None] = asyncio.Queue(BACKLOG_COUNT)
        self._watchers.add(queue)
        return self._follow(queue)

    def send(self, ended: SandboxExit) -> None:
        self._put(ended)

    def close(self) -> None:
        self._put(None)
        self._watchers.clear()

    def _put(self, item: SandboxExit | None) -> None:
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(item)

    async def _follow(self, queue: asyncio.Queue[SandboxExit | None]) -> AsyncIterator[SandboxExit]:
        try:
            while (ended := await queue.get()) is not None:
                yield ended
            raise Unavailable("This node is stopping.")
        finally:
            self._watchers.discard(queue)
