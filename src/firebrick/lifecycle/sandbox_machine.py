"""The one table of what may happen to a sandbox in which state.

    state      STARTED   PAUSE     PAUSED   STAYED    RESUME     END      TORN_DOWN  RECOVER
    creating   running   -         -        -         -          ending   -          -
    running    -         pausing   paused   -         -          ending   -          -
    pausing    -         -         paused   running   -          ending   -          -
    paused     -         -         -        -         resuming   ending   -          -
    resuming   running   -         paused   -         -          ending   -          -
    ending     -         -         -        -         -          -        ended      -
    ended      -         -         -        -         -          -        -          paused

`-` is Rejected with a reason. PAUSE and RESUME are asked by callers, by an expiry or by traffic. PAUSED means that
the node holds it paused: after a pause, after a resume that failed, or because the node was found to hold a running
one so. STAYED means that a pause failed and it still runs. END is asked by a kill, an expiry, an exit of the guest or
a failed create; TORN_DOWN means that the node holds nothing of the sandbox any more, or its disk in the grace bin
only, from which RECOVER brings it back. Nothing else leaves `ended`.
"""

from dataclasses import dataclass
from enum import StrEnum

from firebrick.model.sandbox import SandboxState


class SandboxEvent(StrEnum):
    STARTED = "started"
    PAUSE = "pause"
    PAUSED = "paused"
    STAYED = "stayed"
    RESUME = "resume"
    END = "end"
    TORN_DOWN = "torn_down"
    RECOVER = "recover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The event cannot happen now; `reason` ends the sentence "Sandbox x …" for the caller."""

    reason: str


_S, _E = SandboxState, SandboxEvent

_NEXT: dict[tuple[SandboxState, SandboxEvent], SandboxState] = {
    (_S.CREATING, _E.STARTED): _S.RUNNING,
    (_S.CREATING, _E.END): _S.ENDING,
    (_S.RUNNING, _E.PAUSE): _S.PAUSING,
    (_S.RUNNING, _E.PAUSED): _S.PAUSED,
    (_S.RUNNING, _E.END): _S.ENDING,
    (_S.PAUSING, _E.PAUSED): _S.PAUSED,
    (_S.PAUSING, _E.STAYED): _S.RUNNING,
    (_S.PAUSING, _E.END): _S.ENDING,
    (_S.PAUSED, _E.RESUME): _S.RESUMING,
    (_S.PAUSED, _E.END): _S.ENDING,
    (_S.RESUMING, _E.STARTED): _S.RUNNING,
    (_S.RESUMING, _E.PAUSED): _S.PAUSED,
    (_S.RESUMING, _E.END): _S.ENDING,
    (_S.ENDING, _E.TORN_DOWN): _S.ENDED,
    (_S.ENDED, _E.RECOVER): _S.PAUSED,
}
_REASON: dict[SandboxState, str] = {
    _S.CREATING: "is being created",
    _S.RUNNING: "is already running",
    _S.PAUSING: "is being paused",
    _S.PAUSED: "is already paused",
    _S.RESUMING: "is being resumed",
    _S.ENDING: "is being killed",
    _S.ENDED: "has ended",
}


def next_state(state: SandboxState, event: SandboxEvent) -> SandboxState | Rejected:
    """Answer the state that follows `event`, or why it cannot happen. The table is in the module's text."""
    following = _NEXT.get((state, event))
    return Rejected(reason=_REASON[state]) if following is None else following


def holds_quota(state: SandboxState) -> bool:
    """True while the sandbox counts as concurrent: from creation until its pause is done or its end is decided."""
    return state in (SandboxState.CREATING, SandboxState.RUNNING, SandboxState.PAUSING, SandboxState.RESUMING)


def is_visible(state: SandboxState) -> bool:
    """True while clients may see it: one being created has no id for them yet, one being killed is gone."""
    return state in (SandboxState.RUNNING, SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING)
