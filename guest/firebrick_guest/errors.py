"""The two kinds of refusal a client can meet: a Connect error on an RPC, a plain HTTP error elsewhere."""

from errno import EACCES, EDQUOT, ELOOP, ENAMETOOLONG, ENOENT, ENOSPC, EPERM, EROFS

STATUS_BY_CODE = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}


class ConnectError(Exception):
    """An RPC's refusal, with one of the codes of the Connect protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class HttpError(Exception):
    """A refusal outside RPCs. `close` says that the request's framing can no longer be trusted."""

    def __init__(self, status: int, message: str, *, close: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.close = close


def http_error_of(exc: OSError, what: str) -> HttpError:
    """Translate a failed system call while doing `what` for a client."""
    reason = exc.strerror or "input/output error"
    status = {ENOENT: 404, ENOSPC: 507, EDQUOT: 507, ENAMETOOLONG: 400, ELOOP: 400, EACCES: 403, EPERM: 403, EROFS: 403}
    return HttpError(status.get(exc.errno or 0, 500), f"{what}: {reason.lower()}")


def connect_error_of(exc: OSError, what: str) -> ConnectError:
    """Translate a failed system call while doing `what` for an RPC."""
    reason = exc.strerror or "input/output error"
    code = {
        ENOENT: "not_found",
        ENOSPC: "resource_exhausted",
        EDQUOT: "resource_exhausted",
        ENAMETOOLONG: "invalid_argument",
        ELOOP: "failed_precondition",
        EACCES: "permission_denied",
        EPERM: "permission_denied",
        EROFS: "permission_denied",
    }
    return ConnectError(code.get(exc.errno or 0, "internal"), f"{what}: {reason.lower()}")
