"""Every error a caller can meet.

    FirebrickError
    ├── Invalid            the request can never work as it is        400
    ├── Unauthenticated    no or wrong credential                     401
    ├── Forbidden          known, but not allowed                     403
    ├── NotFound           absent, or another team's                  404
    ├── WrongState         the object is in a state that forbids it   409
    │   └── MemoryRefused  nothing goes on from saved memory here     409
    ├── AlreadyExists                                                 409
    ├── Conflict           a stale generation                         409
    ├── LimitExceeded      a quota of the caller's                    429
    │   └── RateExceeded   too fast; a moment later it works          429
    ├── NoCapacity         the machines are full                      503
    │   └── DiskFull       a disk of ours is, and nothing was changed 503
    ├── Unavailable        a part of ours does not answer             503
    ├── DeadlineExceeded   it took longer than it may                 504
    └── Internal           our fault                                  500

`message` is for the caller: what was asked, why not, what to do. `detail` is for operators and goes to the
log only. HTTP statuses are chosen in one table, in `api/`; the numbers above are that table's.
"""


class FirebrickError(Exception):
    """Root. `code` is stable and machine-readable; `retryable` says if the same request may work later."""

    code = "internal"
    retryable = False

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class Invalid(FirebrickError):
    code = "invalid"


class Unauthenticated(FirebrickError):
    code = "unauthenticated"


class Forbidden(FirebrickError):
    code = "forbidden"


class NotFound(FirebrickError):
    code = "not_found"


class WrongState(FirebrickError):
    code = "wrong_state"


class MemoryRefused(WrongState):
    code = "memory_refused"


class AlreadyExists(FirebrickError):
    code = "already_exists"


class Conflict(FirebrickError):
    code = "conflict"
    retryable = True


class LimitExceeded(FirebrickError):
    code = "limit_exceeded"


class RateExceeded(LimitExceeded):
    code = "rate_exceeded"
    retryable = True


class NoCapacity(FirebrickError):
    code = "no_capacity"
    retryable = True


class DiskFull(NoCapacity):
    code = "disk_full"


class Unavailable(FirebrickError):
    code = "unavailable"
    retryable = True


class DeadlineExceeded(FirebrickError):
    code = "deadline_exceeded"
    retryable = True


class Internal(FirebrickError):
    code = "internal"


BY_CODE: dict[str, type[FirebrickError]] = {
    kind.code: kind
    for kind in (
        Invalid, Unauthenticated, Forbidden, NotFound, WrongState, MemoryRefused, AlreadyExists, Conflict,
        LimitExceeded, RateExceeded, NoCapacity, DiskFull, Unavailable, DeadlineExceeded, Internal,
    )
}  # fmt: skip
