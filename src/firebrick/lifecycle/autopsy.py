"""Why a sandbox is no more, in words for its owner. Pure."""

from firebrick.model.sandbox import EndReason, Sandbox

_TOLD = {
    EndReason.KILLED: "it was killed",
    EndReason.TIMEOUT: "it reached its timeout",
    EndReason.GUEST_EXIT: "its main process ended",
    EndReason.OOM: "it ran out of memory",
    EndReason.NODE_LOST: "its node was lost",
    EndReason.ERROR: "it failed",
}


def told_reason(reason: EndReason, detail: str = "") -> str:
    """`it was killed by key e2b_12…cdef`: a clause that follows a colon."""
    if reason is EndReason.KILLED and detail.startswith("by "):
        return f"{_TOLD[reason]} {detail}"
    return _TOLD[reason] + (f" ({detail.rstrip('.')})" if detail else "")


def told_end(sandbox: Sandbox) -> str:
    """The reason with its time. Precondition: the sandbox is ending or has ended."""
    assert sandbox.end_reason is not None
    at = "" if sandbox.ended_at is None else f" at {sandbox.ended_at:%Y-%m-%dT%H:%M:%SZ}"
    return told_reason(sandbox.end_reason, sandbox.end_detail) + at
