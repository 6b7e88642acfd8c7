"""When a sandbox expires, and what a caller may ask of its timeout. Times in UTC, timeouts in whole seconds."""

from datetime import datetime, timedelta

from firebrick.model.errors import Invalid


def check_timeout(timeout_s: int, *, max_timeout_s: int, allow_zero: bool = False) -> None:
    """Refuse a timeout that cannot be granted.

    Raises:
        Invalid: zero or less (less than zero where 0 means "at once"), or above the team's maximum.
    """
    if timeout_s < 0 or (timeout_s == 0 and not allow_zero):
        raise Invalid(f"Timeout must be {'0 or more' if allow_zero else 'greater than 0'}, in seconds")
    if timeout_s > max_timeout_s:
        raise Invalid(f"Timeout cannot be greater than {_hours(max_timeout_s)} ({max_timeout_s} seconds)")


def _hours(seconds: int) -> str:
    return f"{seconds / 3600:g} hours"


def expiry_set(*, now: datetime, started_at: datetime, timeout_s: int, max_timeout_s: int) -> datetime:
    """The end `timeout_s` from now, but never later than the team's maximum after the start."""
    return min(now + timedelta(seconds=timeout_s), started_at + timedelta(seconds=max_timeout_s))


def expiry_extended(
    expires_at: datetime, *, now: datetime, started_at: datetime, timeout_s: int, max_timeout_s: int
) -> datetime:
    """As `expiry_set`, but only ever later: a shorter timeout leaves the end unchanged to the microsecond."""
    asked = expiry_set(now=now, started_at=started_at, timeout_s=timeout_s, max_timeout_s=max_timeout_s)
    return max(expires_at, asked)


def resume_timeout_s(asked_s: int | None, *, configured_s: int, default_s: int) -> int:
    """How long a resumed sandbox lives: what is asked for; else the default, or what it was configured with if that
    is longer, so that a resume never silently shortens a life."""
    return max(configured_s, default_s) if asked_s is None else asked_s


def is_due(expires_at: datetime, *, now: datetime) -> bool:
    return expires_at <= now


def next_wake_s(next_due: datetime | None, *, now: datetime, longest_s: float) -> float:
    """How long the expiry loop may sleep: until the next sandbox is due, at most `longest_s`, never below 0."""
    if next_due is None:
        return longest_s
    return min(max((next_due - now).total_seconds(), 0.0), longest_s)
