"""What a team may have at once, and how fast it may create: pure arithmetic over figures of one moment."""

from datetime import datetime

from firebrick.model.machine import Limits
from firebrick.model.team import Team, TeamUse

DISK_IS_FULL = "limit of disk"
"""In the refusal that an emptier grace bin can help."""


def over_quota(team: Team, use: TeamUse, wanted: Limits) -> str | None:
    """Why `wanted` does not fit beside `use`, as a sentence for the caller; None when it fits. Of what nothing more is
    asked, no limit can be passed: a resume is never refused for the disk that its own memory takes."""
    if use.sandbox_count >= team.max_sandboxes:
        # E2B's words: users look for them.
        return f"you have reached the maximum number of concurrent sandboxes ({team.max_sandboxes})"
    sums = (
        ("CPU", "millicpu", team.max_millicpu, use.millicpu, wanted.millicpu),
        ("memory", "MiB", team.max_memory_mib, use.memory_mib, wanted.memory_mib),
        ("disk", "MiB", team.max_disk_mib, use.disk_mib, wanted.disk_mib),
    )
    for name, unit, most, used, more in sums:
        if most and more and used + more > most:
            return f"you have reached your team's limit of {name}: {used} of {most} {unit} in use, {more} more asked"
    return None


def take_create(allowance: float, allowance_at: datetime | None, *, rate: float, now: datetime) -> float | None:
    """Spend one create of a bucket that fills with `rate` a second and holds one second's worth, at least one.

    Returns: what is left, to be stored with `now`; None when the bucket is empty.
    """
    most = max(rate, 1.0)
    if allowance_at is None or now < allowance_at:
        # Never used, or the clock was set back: full, else nobody could create until it has caught up.
        filled = most
    else:
        filled = min(most, allowance + rate * (now - allowance_at).total_seconds())
    return filled - 1.0 if filled >= 1.0 else None
