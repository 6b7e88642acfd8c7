"""Readings of a machine as its sandbox's use, and from two readings of a counter to a percentage."""

from dataclasses import dataclass
from datetime import datetime

from firebrick.model.machine import Limits, Usage
from firebrick.rpc.node_api import SandboxUsage

SHORTEST_SPAN_S = 1.0
IDLE_PCT = 2.0
"""Of one core: who uses less over a minute is at rest."""


@dataclass(slots=True)
class CpuMeter:
    """CPU used since the last reading that is at least SHORTEST_SPAN_S old, in percent of one core.

    `base_ns` None: the counter has run before anyone looked, so the first reading only sets the base.
    Two readers that ask in quick succession must not see noise, so the base moves only when it is old enough.
    """

    base_s: float
    base_ns: int | None = 0
    last_pct: float = 0.0

    def read(self, *, now_s: float, cpu_ns: int) -> float:
        if self.base_ns is None:
            self.base_s, self.base_ns = now_s, cpu_ns
        span_s = now_s - self.base_s
        if span_s < SHORTEST_SPAN_S:
            return self.last_pct
        # A counter that went backwards was restarted; it says nothing about this span.
        used_ns = max(0, cpu_ns - self.base_ns)
        self.last_pct = round(used_ns / (span_s * 1e9) * 100, 2)
        self.base_s, self.base_ns = now_s, cpu_ns
        return self.last_pct


def usage_of(reading: Usage, limits: Limits, *, now: datetime, cpu_used_pct: float) -> SandboxUsage:
    return SandboxUsage(
        timestamp=now,
        cpu_ns=reading.cpu_ns,
        cpu_used_pct=cpu_used_pct,
        memory_bytes=reading.memory_bytes,
        memory_limit_bytes=limits.memory_mib << 20,
        disk_bytes=reading.disk_bytes,
        disk_limit_bytes=limits.disk_mib << 20,
        process_count=reading.process_count,
    )


@dataclass(slots=True)
class RestWatch:
    """Tells when something that worked has come to rest, once for each time."""

    base_s: float | None = None
    base_ns: int = 0
    is_told: bool = False

    def comes_to_rest(self, *, now_s: float, cpu_ns: int) -> bool:
        """Whether it used next to nothing since the last reading, and more before."""
        base_s, used_ns = self.base_s, cpu_ns - self.base_ns
        self.base_s, self.base_ns = now_s, cpu_ns
        rests = base_s is not None and used_ns * 100 < IDLE_PCT * (now_s - base_s) * 1e9
        tells = rests and not self.is_told
        self.is_told = rests
        return tells
