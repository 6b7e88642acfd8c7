"""When a sandbox counts as idle."""

from datetime import timedelta

from firebrick.lifecycle.idle import IdleMark, idle_mark, is_idle
from tests.support.rows import NOW


def marks(*steps: tuple[float, int, int]) -> IdleMark:
    """The mark after readings at (seconds, CPU in ms, generation)."""
    mark = None
    for at_s, cpu_ms, generation in steps:
        at = NOW + timedelta(seconds=at_s)
        mark = idle_mark(mark, read_at=at, cpu_ns=cpu_ms * 1_000_000, generation=generation)
    assert mark is not None
    return mark


def test_doing_nothing_long_enough_is_idle() -> None:
    """Below two hundredths of a core for the whole time is idle, at the second it is reached."""
    quiet = [(number * 5.0, 100 + number * 50, 1) for number in range(5)]
    assert not is_idle(marks(*quiet[:4]), 20)
    assert is_idle(marks(*quiet), 20)
    assert not is_idle(marks(*quiet), None)


def test_work_and_requests_begin_anew() -> None:
    """CPU time, a change of the row and a new machine each set the clock back."""
    assert marks((0, 0, 1), (5, 10, 1)).since == NOW
    for step in ((5, 200, 1), (5, 10, 2), (5, -1, 1)):
        assert marks((0, 0, 1), step).since == NOW + timedelta(seconds=5)
