"""Demand: how many sandboxes are likely to be wanted at once."""

from hypothesis import given
from hypothesis import strategies as st

from firebrick.node.warm_demand import BURST_S, HALF_LIFE_S, MOST_COUNT, Demand

NOW_S = 10_000.0


def after(*created_s: float) -> Demand:
    demand = Demand()
    for at_s in created_s:
        demand = demand.after_create(at_s)
    return demand


def test_nothing_was_asked_for() -> None:
    """No create, no demand."""
    assert Demand().wanted_count(NOW_S) == 0


def test_a_burst_is_wanted_again() -> None:
    """Twenty at once: twenty are worth keeping."""
    assert after(*[NOW_S] * 20).wanted_count(NOW_S + 1) == 20


def test_creates_far_apart_are_no_burst() -> None:
    """One after the other, however many: one is enough."""
    assert after(*[NOW_S + number * BURST_S for number in range(20)]).wanted_count(NOW_S + 20 * BURST_S) == 1


def test_it_fades() -> None:
    """By half in each half-life, to nothing in the end."""
    demand = after(*[NOW_S] * 20)
    assert [demand.wanted_count(NOW_S + lives * HALF_LIFE_S) for lives in (0, 1, 2, 6)] == [20, 10, 5, 0]


def test_a_smaller_burst_does_not_hide_a_larger_one() -> None:
    """A single create a minute after a burst of twenty leaves most of it wanted."""
    demand = after(*[NOW_S] * 20, NOW_S + 60)
    assert demand.wanted_count(NOW_S + 60) == 17


@given(st.lists(st.floats(0, 30), max_size=300))
def test_it_stays_within_the_creates(gaps_s: list[float]) -> None:
    """Never more than were created, nor than the bound; never forgotten at once."""
    demand, now_s = Demand(), NOW_S
    for gap_s in gaps_s:
        now_s += gap_s
        demand = demand.after_create(now_s)
        assert demand.wanted_count(now_s) >= 1
    assert demand.wanted_count(now_s) <= min(len(gaps_s), MOST_COUNT)
    assert len(demand.created_s) <= MOST_COUNT
