"""The ring of a process's last output, and the bound over all rings."""

from hypothesis import given
from hypothesis import strategies as st

from firebrick_guest.ring import POOL_BYTES, RING_BYTES, SEGMENT_BYTES, Ring, RingPool, water_level

PIECES = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=9000)), max_size=80)


@given(PIECES, st.integers(0, 400_000))
def test_what_is_left_is_the_end_of_what_was_printed(printed: list[tuple[str, bytes]], since: int) -> None:
    """From any number on, the ring gives exactly the newest bytes in their order, each of its kind."""
    ring = Ring(RingPool())
    for kind, data in printed:
        ring.add(kind, data)
    everything = [(kind, byte) for kind, data in printed for byte in data]
    assert ring.end_seq == len(everything)
    first = max(since, ring.first_seq)
    assert [(kind, byte) for kind, data in ring.pieces(since) for byte in data] == everything[first:]
    assert ring.weight_bytes <= RING_BYTES


def test_single_bytes_weigh_little() -> None:
    """A program that prints byte by byte keeps nearly a ring full, not a hundredth of it."""
    ring = Ring(RingPool())
    for _ in range(RING_BYTES):
        ring.add("stdout", b"x")
    assert ring.size_bytes > RING_BYTES // 2
    assert len(list(ring.pieces())) <= RING_BYTES // SEGMENT_BYTES + 1


def test_readers_share_what_is_full() -> None:
    """Late readers get references to the same bytes, not copies."""
    ring = Ring(RingPool())
    for _ in range(4):
        ring.add("stdout", b"x" * SEGMENT_BYTES)
    assert [id(data) for _, data in ring.pieces()] == [id(data) for _, data in ring.pieces()]


def test_noisy_processes_share_one_bound() -> None:
    """A thousand noisy rings stay within the pool's size together, and a quiet one loses nothing."""
    pool = RingPool()
    quiet = Ring(pool)
    quiet.add("stdout", b"quiet")
    noisy = [Ring(pool) for _ in range(1000)]
    for ring in noisy:
        for _ in range(20):
            ring.add("stdout", b"n" * 4096)
    assert pool.weight_bytes <= POOL_BYTES
    assert list(quiet.pieces()) == [("stdout", b"quiet")]
    assert all(ring.size_bytes for ring in noisy)
    for ring in [*noisy, quiet]:
        ring.close()
    assert (pool.weight_bytes, pool.rings) == (0, set())


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(0, 10_000))
def test_the_water_level_fills_the_budget(sizes: list[int], budget: int) -> None:
    """Cut to the level, sizes fit the budget, and a higher level would not fit."""
    level = water_level(sizes, budget)
    assert sum(min(size, level) for size in sizes) <= budget
    if sizes and sum(sizes) > budget:
        assert sum(min(size, level + 1) for size in sizes) > budget
