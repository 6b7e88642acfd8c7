"""How long the supervisor waits before it starts a role again."""

from firebrick.supervisor.keeper import FIRST_DELAY_S, STEADY_S, next_delay_s


def test_a_role_that_ends_at_once_is_started_ever_more_seldom() -> None:
    """Each wait is twice the one before, up to the longest that is set."""
    waits_s = [FIRST_DELAY_S]
    for _ in range(8):
        waits_s.append(next_delay_s(waits_s[-1], ran_s=1.0, longest_s=5.0))
    assert waits_s[1] == 2 * FIRST_DELAY_S
    assert waits_s[-1] == 5.0


def test_a_role_that_ran_long_is_started_again_at_once() -> None:
    """One that was healthy begins anew with the first delay."""
    assert next_delay_s(5.0, ran_s=STEADY_S + 1, longest_s=5.0) == FIRST_DELAY_S


def test_no_wait_is_longer_than_the_setting_says() -> None:
    """Also the first."""
    assert next_delay_s(0.1, ran_s=STEADY_S + 1, longest_s=0.1) == 0.1
