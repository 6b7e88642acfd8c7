"""Time as an argument: the only module that reads a clock."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a service may ask of time. Tests pass one that they turn by hand."""

    def now(self) -> datetime:
        """Wall time, UTC, microseconds. May jump: use it for what is stored or shown."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go backwards: use it for deadlines and durations."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
