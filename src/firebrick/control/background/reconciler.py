"""The loop around every reconciler: run a round, sleep until poked or due, never die of an error."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from firebrick.clock import Clock
from firebrick.control.signals import Waker
from firebrick.log import get_log

RETRY_S = 1.0
"""Wait after a failed round."""

log = get_log("control.reconciler")


@dataclass(slots=True, kw_only=True)
class ReconcilerStatus:
    """Readable at any time. `error` is the last round's, empty when it went well."""

    name: str
    round_count: int = 0
    failure_count: int = 0
    last_round_at: datetime | None = None
    last_duration_ms: float = 0.0
    error: str = ""


class Reconciler:
    """`round` does what there is to do and returns how many seconds may pass until the next."""

    def __init__(
        self, name: str, round: Callable[[], Awaitable[float]], clock: Clock, waker: Waker | None = None
    ) -> None:
        self._round = round
        self._clock = clock
        self._waker = waker or Waker()
        self.status = ReconcilerStatus(name=name)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._waker.wait(self._clock, await self.run_once())

    async def run_once(self) -> float:
        """One round; returns the pause after it."""
        status, before = self.status, self._clock.monotonic_s()
        status.round_count += 1
        status.last_round_at = self._clock.now()
        try:
            pause_s = await self._round()
            status.error = ""
        except Exception as exc:
            # A task's root: whatever a round raises, the next one must come.
            status.failure_count += 1
            if status.error != repr(exc):
                log.exception("reconciler.failed", reconciler=status.name)
            status.error = repr(exc)
            pause_s = RETRY_S
        status.last_duration_ms = round((self._clock.monotonic_s() - before) * 1000, 2)
        return pause_s
