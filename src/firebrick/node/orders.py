"""What an actor is asked to do beside its life, and the race between a life and its end."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from firebrick.clock import Clock
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError, Internal, WrongState
from firebrick.model.machine import MachineExit

RETRY_FIRST_S = 0.2
RETRY_LONGEST_S = 30.0

log = get_log("node")


class Order:
    """Something to do in the actor's task, and who waits for it."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._work = work
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Nobody need be waiting when it fails.
        self.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())

    async def run(self) -> None:
        try:
            self._settle(result=await self._work())
        except FirebrickError as exc:
            self._settle(failure=exc)
        except Exception as exc:
            log.exception("machine.order_failed")
            self._settle(failure=Internal("The machine's owner failed.", detail=repr(exc)))
        finally:
            self.refuse()

    def refuse(self) -> None:
        self._settle(failure=WrongState("The sandbox was killed meanwhile."))

    def _settle(self, *, result: object = None, failure: FirebrickError | None = None) -> None:
        if self.answer.done():
            return
        if failure is not None:
            self.answer.set_exception(failure)
        else:
            self.answer.set_result(result)


async def first_of(work: "asyncio.Future[MachineExit]", other: "asyncio.Future[Any]") -> MachineExit | None:
    """The result of `work`, or None when `other` is done before it; the loser is cancelled and waited for.
    Raises what the first one raised."""
    try:
        await asyncio.wait({work, other}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        other.result()
        return None
    finally:
        for task in (work, other):
            task.cancel()
        await asyncio.wait({work, other})


async def failures_of(what: str, step: Callable[[], Coroutine[Any, Any, None]], clock: Clock) -> AsyncIterator[None]:
    """Repeat a step of the way back until it works, for giving up would leak and going on would be unsafe; told of each
    failure before the next attempt."""
    pause_s = RETRY_FIRST_S
    while True:
        try:
            await step()
            return
        except Exception as exc:  # noqa: BLE001 - whatever it is, the next attempt may work
            detail = exc.detail if isinstance(exc, FirebrickError) else repr(exc)
            log.error("machine.end_failed", step=what, reason=str(exc), detail=detail, retry_s=pause_s)
        yield
        await clock.sleep(pause_s)
        pause_s = min(pause_s * 2, RETRY_LONGEST_S)
