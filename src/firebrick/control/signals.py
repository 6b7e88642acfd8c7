"""How a service tells a reconciler that there may be work: a poke without content.

A reconciler reads what to do from the store, so a poke that is lost costs time and nothing else.
"""

import asyncio
from datetime import datetime

from firebrick.clock import Clock


class Waker:
    """Wait for a poke or for time, whichever comes first. One waiter."""

    def __init__(self) -> None:
        self._poked = asyncio.Event()

    def poke(self) -> None:
        self._poked.set()

    async def wait(self, clock: Clock, seconds: float) -> None:
        """Return after `seconds`, or at once if poked since the last wait."""
        if not self._poked.is_set() and seconds > 0:
            timer = asyncio.ensure_future(clock.sleep(seconds))
            poke = asyncio.ensure_future(self._poked.wait())
            try:
                await asyncio.wait((timer, poke), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (timer, poke):
                    task.cancel()
                await asyncio.wait((timer, poke))
        self._poked.clear()


class Signals:
    """One waker per reconciler that somebody pokes."""

    def __init__(self) -> None:
        self.expiry = Waker()
        self.endings = Waker()
        self.nodes = Waker()
        self.snapshots = Waker()
        self.expiry_wakes_at: datetime | None = None

    def expires(self, at: datetime) -> None:
        """A sandbox now expires at `at`: wake the expiry loop if it would sleep beyond that."""
        if self.expiry_wakes_at is None or at < self.expiry_wakes_at:
            self.expiry.poke()
