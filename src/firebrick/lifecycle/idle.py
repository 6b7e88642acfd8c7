"""Has a sandbox done nothing? Pure. Idle means: less CPU than BUSY_SHARE of a core, no request that changed its row.

CPU time is what is looked at because it counts whatever is done in a sandbox: traffic to any of its ports, commands,
its own background work. What a guest costs by merely being there lies well below.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

BUSY_SHARE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleMark:
    """What was seen last, and since when nothing was done."""

    since: datetime
    read_at: datetime
    cpu_ns: int
    generation: int


def idle_mark(before: IdleMark | None, *, read_at: datetime, cpu_ns: int, generation: int) -> IdleMark:
    """The mark after one more reading. Without one before, its time begins now."""
    since = read_at if before is None or _is_busy(before, read_at, cpu_ns, generation) else before.since
    return IdleMark(since=since, read_at=read_at, cpu_ns=cpu_ns, generation=generation)


def _is_busy(before: IdleMark, read_at: datetime, cpu_ns: int, generation: int) -> bool:
    elapsed_ns = (read_at - before.read_at) / timedelta(microseconds=1) * 1000
    # A counter that went back belongs to a new machine.
    used_ns = cpu_ns - before.cpu_ns
    return generation != before.generation or used_ns < 0 or used_ns > BUSY_SHARE * elapsed_ns


def is_idle(mark: IdleMark, idle_timeout_s: int | None) -> bool:
    return idle_timeout_s is not None and mark.read_at - mark.since >= timedelta(seconds=idle_timeout_s)
