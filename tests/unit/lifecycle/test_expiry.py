"""Timeouts: what may be asked, and when the end is."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.lifecycle.expiry import check_timeout, expiry_extended, expiry_set, is_due, next_wake_s
from firebrick.model.errors import Invalid

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_S = 86_400


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


@pytest.mark.parametrize("timeout_s", [0, -1, DAY_S + 1, 2**63])
def test_bad_timeouts_are_refused(timeout_s: int) -> None:
    """Zero, negative and too long timeouts are Invalid."""
    with pytest.raises(Invalid, match="Timeout"):
        check_timeout(timeout_s, max_timeout_s=DAY_S)


def test_texts_are_the_known_ones() -> None:
    """Clients grep these texts; the maximum is named in hours and in seconds."""
    with pytest.raises(Invalid, match=r"^Timeout must be greater than 0"):
        check_timeout(0, max_timeout_s=DAY_S)
    with pytest.raises(Invalid, match=r"^Timeout cannot be greater than 24 hours \(86400 seconds\)"):
        check_timeout(DAY_S + 1, max_timeout_s=DAY_S)


def test_the_bounds_themselves_are_granted() -> None:
    """1 s, the maximum, and 0 where it means "at once" are fine."""
    check_timeout(1, max_timeout_s=DAY_S)
    check_timeout(DAY_S, max_timeout_s=DAY_S)
    check_timeout(0, max_timeout_s=DAY_S, allow_zero=True)


@given(st.integers(0, 2 * DAY_S), st.integers(0, DAY_S), st.integers(0, DAY_S))
def test_extending_never_shortens(age_s: int, left_s: int, timeout_s: int) -> None:
    """An extension gives the later of both ends, and never more than the maximum after the start adds."""
    now = START + seconds(age_s)
    old = now + seconds(left_s)
    new = expiry_extended(old, now=now, started_at=START, timeout_s=timeout_s, max_timeout_s=DAY_S)
    assert new >= old
    assert new == old or new <= START + seconds(DAY_S)
    if timeout_s <= left_s:
        assert new == old


@given(st.integers(0, DAY_S), st.integers(0, DAY_S))
def test_setting_is_exact_up_to_the_maximum(age_s: int, timeout_s: int) -> None:
    """Setting may shorten; the end is exactly now plus the timeout, capped at the maximum after the start."""
    now = START + seconds(age_s)
    end = expiry_set(now=now, started_at=START, timeout_s=timeout_s, max_timeout_s=DAY_S)
    assert end == START + seconds(min(age_s + timeout_s, DAY_S))


def test_due_is_inclusive() -> None:
    """A sandbox is due at its end, not a microsecond before."""
    assert is_due(START, now=START)
    assert not is_due(START + timedelta(microseconds=1), now=START)


def test_the_loop_sleeps_until_the_next_end() -> None:
    """Nothing due: the longest sleep; something due: exactly until then; overdue: not at all."""
    assert next_wake_s(None, now=START, longest_s=5) == 5
    assert next_wake_s(START + seconds(2), now=START, longest_s=5) == 2
    assert next_wake_s(START + seconds(9), now=START, longest_s=5) == 5
    assert next_wake_s(START - seconds(1), now=START, longest_s=5) == 0
