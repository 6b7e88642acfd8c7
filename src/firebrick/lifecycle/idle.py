"""Has a sandbox done nothing? Pure. Idle means: no more CPU than at rest, and no request that changed its row.

CPU time is what is looked at because it counts whatever is done in a sandbox: traffic to any of its ports, commands,
its own background work. Being there costs some, too, and how much depends on the runtime (gVisor: 2.5 % of a core,
containers: none), so that a sandbox is compared with its own quietest moment.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

LEAST_SHARE = 0.002
"""Of a core: the noise of a sandbox at rest. A single command costs more in a sample's 5 s."""
MOST_REST_SHARE = 0.05
"""More than this is work, even if a sandbox was never seen quieter."""
MARGIN = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleMark:
    """What was seen last, since when nothing was done, and the lowest share of a core that was seen."""

    since: datetime
    read_at: datetime
    cpu_ns: int
    generation: int
    rest_share: float = MOST_REST_SHARE


def idle_mark(before: IdleMark | None, *, read_at: datetime, cpu_ns: int, generation: int) -> IdleMark:
    """The mark after one more reading. Without one before, its time begins now."""
    if before is None:
        return IdleMark(since=read_at, read_at=read_at, cpu_ns=cpu_ns, generation=generation)
    elapsed_ns = max((read_at - before.read_at) / timedelta(microseconds=1) * 1000, 1.0)
    share = (cpu_ns - before.cpu_ns) / elapsed_ns
    # A counter that went back belongs to a new machine.
    is_new = share < 0 or generation != before.generation
    rest_share = before.rest_share if share < 0 else min(before.rest_share, share)
    is_busy = is_new or share > max(LEAST_SHARE, rest_share * MARGIN)
    return IdleMark(
        since=read_at if is_busy else before.since,
        read_at=read_at,
        cpu_ns=cpu_ns,
        generation=generation,
        rest_share=rest_share,
    )


def is_idle(mark: IdleMark, idle_timeout_s: int | None) -> bool:
    return idle_timeout_s is not None and mark.read_at - mark.since >= timedelta(seconds=idle_timeout_s)
