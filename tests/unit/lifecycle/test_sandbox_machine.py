"""The table of states, whole."""

import itertools

import pytest

from firebrick.lifecycle.end_reasons import end_reason_of
from firebrick.lifecycle.sandbox_machine import Rejected, SandboxEvent, holds_quota, is_visible, next_state
from firebrick.model.machine import ExitCause
from firebrick.model.sandbox import EndReason, SandboxState

S, E = SandboxState, SandboxEvent
ALLOWED = {
    (S.CREATING, E.STARTED): S.RUNNING,
    (S.CREATING, E.END): S.ENDING,
    (S.RUNNING, E.PAUSE): S.PAUSING,
    (S.RUNNING, E.PAUSED): S.PAUSED,
    (S.RUNNING, E.END): S.ENDING,
    (S.PAUSING, E.PAUSED): S.PAUSED,
    (S.PAUSING, E.STAYED): S.RUNNING,
    (S.PAUSING, E.END): S.ENDING,
    (S.PAUSED, E.RESUME): S.RESUMING,
    (S.PAUSED, E.END): S.ENDING,
    (S.RESUMING, E.STARTED): S.RUNNING,
    (S.RESUMING, E.PAUSED): S.PAUSED,
    (S.RESUMING, E.END): S.ENDING,
    (S.ENDING, E.TORN_DOWN): S.ENDED,
    (S.ENDED, E.RECOVER): S.PAUSED,
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(S, E)))
def test_every_pair_follows_the_table(state: SandboxState, event: SandboxEvent) -> None:
    """Each state and event gives the table's next state, or a rejection with a reason."""
    result = next_state(state, event)
    if (state, event) in ALLOWED:
        assert result is ALLOWED[state, event]
    else:
        assert isinstance(result, Rejected)
        assert result.reason


def test_nothing_leaves_the_end() -> None:
    """From every state an end is reached in at most two events; nothing but a recovery leaves it."""
    for state in S:
        if state is S.ENDED:
            assert all(isinstance(next_state(state, event), Rejected) for event in E if event is not E.RECOVER)
            continue
        ending = next_state(state, E.END) if state is not S.ENDING else S.ENDING
        assert ending is S.ENDING
        assert next_state(ending, E.TORN_DOWN) is S.ENDED


def test_quota_and_visibility() -> None:
    """A creating sandbox counts but is not shown; a paused one is shown but does not count; an ending one neither."""
    assert [state for state in S if holds_quota(state) and not is_visible(state)] == [S.CREATING]
    assert [state for state in S if not holds_quota(state)] == [S.PAUSED, S.ENDING, S.ENDED]
    assert [state for state in S if is_visible(state) and not holds_quota(state)] == [S.PAUSED]


def test_every_cause_has_a_reason() -> None:
    """What a node saw maps to the reason that users are shown."""
    assert {cause: end_reason_of(cause) for cause in ExitCause} == {
        ExitCause.GUEST_EXIT: EndReason.GUEST_EXIT,
        ExitCause.OOM: EndReason.OOM,
        ExitCause.DESTROYED: EndReason.ERROR,
        ExitCause.LOST: EndReason.NODE_LOST,
    }
