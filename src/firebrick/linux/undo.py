"""Pair every effect with its undo at the line where it happens.

    async with UndoStack() as undo:
        path.mkdir()
        undo.push(path.rmdir)
        await attach(path)
        undo.push(lambda: detach(path))
        undo.release()          # all went well: keep the effects

Leaving the block without `release()` runs the undos in reverse order, shielded from cancellation. An undo
that fails does not stop the others; all failures are raised together, chained to what went wrong first.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from types import TracebackType

Undo = Callable[[], Awaitable[object] | object]


class UndoStack:
    def __init__(self) -> None:
        self._undos: list[Undo] = []

    def push(self, undo: Undo) -> None:
        self._undos.append(undo)

    def release(self) -> None:
        """Keep every effect made so far."""
        self._undos.clear()

    async def run(self) -> None:
        """Undo everything, newest first. Raises ExceptionGroup of what failed."""
        failures: list[Exception] = []
        while self._undos:
            undo = self._undos.pop()
            try:
                result = undo()
                if inspect.isawaitable(result):
                    await result
            except Exception as exc:  # noqa: BLE001 - collected, so that one failing undo never hides the others
                failures.append(exc)
        if failures:
            raise ExceptionGroup("undo failed", failures)

    async def __aenter__(self) -> "UndoStack":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._undos:
            task = asyncio.ensure_future(self.run())
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                await task
                raise
