"""Errors on the wire: one shape, `{"code": <HTTP status>, "message": …, "error_code"?: …}`, and one table of statuses.

Every error of every kind ends here: ours, the framework's 404 and 405, failed validation, and what nobody foresaw.
A message never repeats what the caller sent in full and never tells of SQL, paths, addresses or other teams.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from firebrick.control.sandboxes import IdempotencyInProgress, IdempotencyMismatch
from firebrick.control.workflows.sandbox_resume import GuestStillUnresponsive
from firebrick.log import get_log
from firebrick.model.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    DiskFull,
    FirebrickError,
    Forbidden,
    Internal,
    Invalid,
    LimitExceeded,
    MemoryRefused,
    NoCapacity,
    NotFound,
    Unauthenticated,
    Unavailable,
    WrongState,
)

log = get_log("api")

MAX_MESSAGE_CHARS = 300
RETRY_AFTER_S = 1


class TooLarge(FirebrickError):
    """The request's body is larger than any honest one."""

    code = "too_large"


class NotInThisVersion(FirebrickError):
    """E2B has it, this version of Firebrick has not."""

    code = "not_in_this_version"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not available in this version of Firebrick.")


STATUS: dict[type[FirebrickError], int] = {
    Invalid: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    WrongState: 409,
    AlreadyExists: 409,
    Conflict: 409,
    TooLarge: 413,
    IdempotencyMismatch: 422,
    LimitExceeded: 429,
    Internal: 500,
    NotInThisVersion: 501,
    NoCapacity: 503,
    Unavailable: 503,
    DeadlineExceeded: 504,
}

ERROR_CODE: dict[type[FirebrickError], str] = {
    IdempotencyMismatch: "idempotency_request_mismatch",
    IdempotencyInProgress: "idempotency_request_in_progress",
    NoCapacity: "sandbox_capacity_unavailable",
    DiskFull: "disk_full",
    DeadlineExceeded: "sandbox_placement_timeout",
    MemoryRefused: "snapshot_memory_refused",
    GuestStillUnresponsive: "sandbox_snapshot_guest_agent_unresponsive",
}
"""E2B's own codes, where it has one for the case, and some of ours."""


def status_of(error: FirebrickError) -> int:
    """By the nearest class in the table; an error without any is our fault."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def error_response(
    status: int, message: str, *, error_code: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    shown = " ".join(message.split())
    if len(shown) > MAX_MESSAGE_CHARS:
        shown = shown[: MAX_MESSAGE_CHARS - 1] + "…"
    body: dict[str, Any] = {"code": status, "message": shown}
    if error_code is not None:
        body["error_code"] = error_code
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def firebrick_error_response(error: FirebrickError) -> JSONResponse:
    """Clients retry 429 and 5xx unless told not to, so each of those says if a retry makes sense."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if status == 429 or status >= 500:
        headers["Should-Retry"] = "true" if error.retryable else "false"
        if error.retryable:
            headers["Retry-After"] = str(RETRY_AFTER_S)
    code = next((ERROR_CODE[kind] for kind in type(error).__mro__ if kind in ERROR_CODE), None)
    return error_response(status, error.message, error_code=code, headers=headers)


def unforeseen_response() -> JSONResponse:
    message = "Something went wrong on our side. The server's log has the reason under this answer's X-Request-Id."
    return error_response(500, message, headers={"Should-Retry": "false"})


async def _on_firebrick_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, FirebrickError)
    status = status_of(exc)
    if status >= 500 and status != 501:
        log.warning("request.failed", status=status, error=exc.message, detail=exc.detail, exc_info=exc)
    return firebrick_error_response(exc)


async def _on_http_error(request: Request, exc: Exception) -> Response:
    """What the framework refuses by itself: unknown paths, methods, unreadable bodies."""
    assert isinstance(exc, HTTPException)
    if exc.status_code == 404:
        message = "There is no such endpoint."
    elif exc.status_code == 405:
        message = "This endpoint does not know this method."
    elif exc.status_code == 400:
        message = "validation error: the body cannot be read as JSON"
    else:
        message = str(exc.detail)
    headers = {"Allow": ", ".join(_methods_of(request))} if exc.status_code == 405 else exc.headers
    return error_response(exc.status_code, message, headers=headers)


def _methods_of(request: Request) -> list[str]:
    """What this path knows. The framework names the first route's methods only, and ours have one each."""
    found: set[str] = set()
    waiting = list(request.app.routes)
    while waiting:
        route = waiting.pop()
        inner = getattr(route, "original_router", None)
        if inner is not None:
            waiting += inner.routes
        elif isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


async def _on_invalid(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    return error_response(400, f"validation error: {_first_problem(exc.errors())}")


def _first_problem(problems: Sequence[Any]) -> str:
    """Name the field and what is wrong with it, not the value: that may be a secret, or a megabyte."""
    problem = problems[0]
    if problem.get("type") == "json_invalid":
        return "the body is not valid JSON"
    place = [str(part) for part in problem.get("loc", ()) if part not in ("body", "query", "path", "header")]
    name = "".join(char if char.isprintable() else "?" for char in ".".join(place))[:64]
    return f"{name}: {problem['msg']}" if name else f"the body: {problem['msg']}"


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(FirebrickError, _on_firebrick_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
