"""What is killed when memory ends, what commands may have, and how a limit is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick_guest.guard import MIB, Running, choose, free_bytes, reserve_bytes
from firebrick_guest.limits import LimitWatch, process_soft_limit
from firebrick_guest.logs import EventLog


def running(*shapes: tuple[int, int]) -> list[Running]:
    return [Running(pid, session, "x", mib * MIB) for pid, (session, mib) in enumerate(shapes, start=10)]


@pytest.mark.parametrize(
    ("shapes", "kind", "pids"),
    [
        ([(1, 5), (1, 300), (2, 200)], "process", [11]),
        ([(1, 60), (1, 60), (1, 60), (2, 100)], "session", [10, 11, 12]),
        ([(1, 100)], "process", [10]),
        ([], "nothing", []),
    ],
)
def test_who_is_ended(shapes: list[tuple[int, int]], kind: str, pids: list[int]) -> None:
    """The process that holds most of the heaviest session, or the whole session when none does."""
    found, victims = choose(running(*shapes))
    assert (found, [victim.pid for victim in victims]) == (kind, pids)


def test_many_processes_weigh_on_what_is_left() -> None:
    """What the guest's kernel needs for its processes counts once it is more than was allowed for."""
    total, limit = 1024 * MIB, 1152 * MIB
    assert free_bytes(limit, total, 900 * MIB, 20) == 900 * MIB
    assert free_bytes(limit, total, 900 * MIB, 1000) < 650 * MIB
    assert reserve_bytes(total) == 64 * MIB


@given(st.integers(1, 100_000), st.integers(0, 100_000))
def test_a_command_never_gets_more_processes_than_there_are(hard: int, count: int) -> None:
    """The soft limit is within the hard one; with few processes a part is kept, with many a command still gets some."""
    soft = process_soft_limit(hard, count)
    assert 0 < soft <= hard
    if hard >= 128 and count < hard // 2:
        assert soft <= hard - hard // 8
    if hard >= 128 and count < hard - hard // 8:
        assert soft - count > 0
    assert process_soft_limit(-1, count) == -1


def test_a_limit_is_counted_always_and_told_now_and_then() -> None:
    """Thousands of hits at once are one line in the log."""
    log = EventLog()
    limits = LimitWatch(log)
    for _ in range(5000):
        limits.hit("processes", limit_count=7)
    assert limits.counts["processes"] == 5000
    entries = log.read(0, 10)["entries"]
    assert isinstance(entries, list)
    assert [entry["message"] for entry in entries] == ["limit reached"]
    assert entries[0]["fields"] == {"limit": "processes", "limit_count": "7"}
