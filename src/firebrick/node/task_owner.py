"""Tasks with an owner: each is kept, reaped when done, and cancelled and awaited when the owner closes.

A TaskGroup would end all machines' owners when one of them fails; here each task answers for itself.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from firebrick.log import get_log

log = get_log("node")


class TaskOwner:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, object], *, name: str) -> None:
        task = asyncio.ensure_future(work)
        task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    async def close(self) -> None:
        """Cancel all and wait for them."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks))

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("task.failed", task=task.get_name(), reason=repr(failure))
