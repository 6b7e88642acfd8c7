"""From what a node saw to the reason that is kept and shown."""

from typing import assert_never

from firebrick.model.machine import ExitCause
from firebrick.model.sandbox import EndReason


def end_reason_of(cause: ExitCause) -> EndReason:
    """DESTROYED without our asking is an error: somebody else removed the machine."""
    match cause:
        case ExitCause.GUEST_EXIT:
            return EndReason.GUEST_EXIT
        case ExitCause.OOM:
            return EndReason.OOM
        case ExitCause.LOST:
            return EndReason.NODE_LOST
        case ExitCause.DESTROYED:
            return EndReason.ERROR
        case _:
            assert_never(cause)
