"""The outermost layer of every request: its id, its log line, its count, and the net under everything."""

import re
import secrets
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firebrick.api.errors import unforeseen_response
from firebrick.api.telemetry import Telemetry
from firebrick.log import bound, get_log

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

log = get_log("api")


class RequestContext:
    """ASGI middleware. A caller's `X-Request-Id` is kept if it is harmless; every answer carries one."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.match(given) else secrets.token_hex(8)
        with bound(request_id=request_id):
            await self._answer(scope, receive, send, request_id)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started, status = perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # The request's task root: log the whole chain once, answer in the one shape.
            log.exception("request.crashed")
            if status == 0:
                await unforeseen_response()(scope, receive, send_with_id)
        finally:
            self._note(scope, status, perf_counter() - started)

    def _note(self, scope: Scope, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._telemetry.count(method=method, route=route, status=status, duration_s=duration_s)
        log.debug(
            "request.done", method=method, route=route, status=status, duration_ms=round(duration_s * 1000, 2)
        )  # fmt: skip
