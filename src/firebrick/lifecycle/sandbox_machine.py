"""The one table of what may happen to a sandbox in which state.

    state      STARTED    END       TORN_DOWN
    creating   running    ending    -
    running    -          ending    -
    pausing    -          ending    -
    paused     -          ending    -
    resuming   -          ending    -
    ending     -          -         ended
    ended      -          -         -

`-` is Rejected with a reason. END is asked by a kill, an expiry, an exit of the guest or a failed create;
TORN_DOWN means that the node holds nothing of the sandbox any more. Nothing leaves `ended`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from firebrick.model.sandbox import SandboxState


class SandboxEvent(StrEnum):
    STARTED = "started"
    END = "end"
    TORN_DOWN = "torn_down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The event cannot happen now; `reason` ends the sentence "Sandbox x …" for the caller."""

    reason: str


def next_state(state: SandboxState, event: SandboxEvent) -> SandboxState | Rejected:
    """Answer the state that follows `event`, or why it cannot happen. The table is in the module's text."""
    match state:
        case SandboxState.CREATING:
            return _creating(event)
        case SandboxState.RUNNING:
            return SandboxState.ENDING if event is SandboxEvent.END else Rejected(reason="is already running")
        case SandboxState.PAUSING | SandboxState.PAUSED | SandboxState.RESUMING:
            return SandboxState.ENDING if event is SandboxEvent.END else Rejected(reason=f"is {state.value}")
        case SandboxState.ENDING:
            return SandboxState.ENDED if event is SandboxEvent.TORN_DOWN else Rejected(reason="is being killed")
        case SandboxState.ENDED:
            return Rejected(reason="has ended")
        case _:
            assert_never(state)


def _creating(event: SandboxEvent) -> SandboxState | Rejected:
    match event:
        case SandboxEvent.STARTED:
            return SandboxState.RUNNING
        case SandboxEvent.END:
            return SandboxState.ENDING
        case SandboxEvent.TORN_DOWN:
            return Rejected(reason="is being created")
        case _:
            assert_never(event)


def holds_quota(state: SandboxState) -> bool:
    """True while the sandbox counts against its team's limit: from creation until its end is decided."""
    return state not in (SandboxState.ENDING, SandboxState.ENDED)


def is_visible(state: SandboxState) -> bool:
    """True while clients may see it: one being created has no id for them yet, one being killed is gone."""
    return state in (SandboxState.RUNNING, SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING)
