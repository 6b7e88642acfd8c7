"""Whom memory killed, from what kernel and guest agent told."""

from datetime import UTC, datetime, timedelta

from firebrick.lifecycle.memory_kills import Told, victims

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def told(second: float, message: str = "limit reached", **fields: str) -> Told:
    return Told(at=NOW + timedelta(seconds=second), message=message, fields={"limit": "memory"} | fields)


KERNEL = {"source": "kernel", "name": "python3"}


def test_the_kernels_name_and_the_agents_id() -> None:
    """Both tell of one kill: it is one victim, with the id that the agent knows."""
    found = victims([told(0), told(0.4, name="python3", pid="7"), told(0.1, **KERNEL)])
    assert [(victim.name, victim.pid, victim.detail) for victim in found] == [
        ("python3", 7, "python3 (pid 7) was killed")
    ]


def test_an_agents_guess_does_not_outweigh_the_kernel() -> None:
    """Another name, another time, another id: the kernel's word stays."""
    lines = [told(0, **KERNEL, pid="5"), told(0.1, name="bash", pid="9"), told(9, name="python3", pid="11")]
    assert [victim.detail for victim in victims(lines)] == ["python3 (pid 5) was killed"]


def test_the_guard_knows_all() -> None:
    """Where the guest agent kills by itself, it says whom, and how many."""
    lines = [told(3, ended="session", name="sh", pid="4", count="3"), told(1, ended="process", name="node", pid="8")]
    assert [victim.detail for victim in victims(lines)] == [
        "node (pid 8) was killed",
        "sh (pid 4) was killed, with 2 more of its session",
    ]


def test_nobody_knows() -> None:
    """A count that rose is told; lines about other limits are not."""
    other = Told(at=NOW, message="limit reached", fields={"limit": "disk"})
    assert [victim.detail for victim in victims([told(0), other])] == ["a process was killed; which one is not known"]


def test_what_a_guest_makes_up_does_no_harm() -> None:
    """Ids and counts are text that a guest can choose."""
    lines = [told(0, ended="process", name="x", pid="-1", count="9" * 5000), told(1, ended="x", name="y", pid="²")]
    assert [(victim.pid, victim.detail) for victim in victims(lines)] == [
        (None, "x was killed"),
        (None, "y was killed"),
    ]
