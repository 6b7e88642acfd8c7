"""The edge's own answers: what a client reads when no sandbox answered.

Shape and words are E2B's, whose clients look for "was not found" and "port is not open". JSON for programs, a page
for browsers. Everything reflected is quoted or escaped.
"""

import json
from dataclasses import dataclass
from html import escape
from http import HTTPStatus

from firebrick.edge.heads import RequestHead
from firebrick.model.errors import FirebrickError

_REASONS = {
    "killed": "it was killed",
    "timeout": "it reached its timeout",
    "guest_exit": "its main process ended",
    "oom": "it ran out of memory",
    "node_lost": "its node was lost",
    "error": "it failed",
    "paused": "it is paused",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer, before it is known if a browser asks. `title` empty: there is no page for it."""

    status: int
    message: str
    title: str = ""
    sandbox_id: str = ""
    port: int | None = None
    text: str = ""
    may_retry: bool = True

    def parts(self, *, for_browser: bool) -> tuple[list[tuple[str, str]], bytes]:
        """Headers and body, for any version of HTTP."""
        if self.text:
            kind, body = "text/plain; version=0.0.4; charset=utf-8", self.text.encode()
        elif for_browser and self.title:
            kind, body = "text/html; charset=utf-8", self._page().encode()
        else:
            kind, body = "application/json; charset=utf-8", self._json().encode()
        headers = [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Access-Control-Allow-Origin", "*"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if not self.may_retry:
            # Without it E2B's client would ask thrice more for a sandbox that is gone.
            headers.append(("Should-Retry", "false"))
        return headers, body

    def render(self, *, for_browser: bool, with_body: bool, keeps_alive: bool) -> bytes:
        """The whole answer in HTTP/1.1."""
        headers, body = self.parts(for_browser=for_browser)
        lines = [f"HTTP/1.1 {self.status} {_phrase(self.status)}", *(f"{name}: {value}" for name, value in headers)]
        if not keeps_alive:
            lines.append("Connection: close")
        head = "\r\n".join((*lines, "", "")).encode()
        return head + body if with_body else head

    def _json(self) -> str:
        fields: dict[str, str | int] = {"code": self.status, "message": self.message}
        if self.sandbox_id:
            fields["sandboxId"] = self.sandbox_id
        if self.port is not None:
            fields["port"] = self.port
        return json.dumps(fields)

    def _page(self) -> str:
        title, message, sandbox_id = escape(self.title), escape(self.message), escape(self.sandbox_id)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
            f"<body><h1>{title}</h1><p>{message}.</p><p>Sandbox <code>{sandbox_id}</code></p></body></html>\n"
        )


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase


def is_browser(head: RequestHead) -> bool:
    """A page is for those who ask for one; scripts in a browser accept anything and want JSON."""
    accept = head.get(b"accept")
    if accept is not None:
        return b"text/html" in accept
    return b"Mozilla/" in (head.get(b"user-agent") or b"")


def healthy() -> Answer:
    return Answer(status=200, message="ok")


def plain_text(text: str) -> Answer:
    return Answer(status=200, message="", text=text)


def bad_request(message: str, status: int = 400) -> Answer:
    return Answer(status=status, message=message)


def no_target() -> Answer:
    return Answer(
        status=400,
        message="This request names no sandbox: use a host like <port>-<sandboxID>.<domain>, "
        "or send the headers E2b-Sandbox-Id and E2b-Sandbox-Port.",
    )


def head_too_large(limit_bytes: int) -> Answer:
    return Answer(status=431, message=f"The request line and headers are longer than {limit_bytes} bytes.")


def head_timeout() -> Answer:
    return Answer(status=408, message="The request's headers did not arrive in time.")


def invalid_signature() -> Answer:
    return Answer(status=401, message="invalid signature")


def reserved_route() -> Answer:
    return Answer(status=404, message="This path is reserved for the E2B control plane")


def not_found(sandbox_id: str, reason: str = "") -> Answer:
    told = _REASONS.get(reason)
    return Answer(
        status=502,
        message="The sandbox was not found" + (f": {told}" if told else ""),
        title="Sandbox Not Found",
        sandbox_id=sandbox_id,
        may_retry=False,
    )


def token_missing(sandbox_id: str, port: int) -> Answer:
    return Answer(
        status=403,
        message="Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing",
        title="Missing Traffic Access Token",
        sandbox_id=sandbox_id,
        port=port,
    )


def token_invalid(sandbox_id: str, port: int) -> Answer:
    return Answer(
        status=403,
        message="Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' "
        "is invalid",
        title="Invalid Traffic Access Token",
        sandbox_id=sandbox_id,
        port=port,
    )


_WAKE_STATUS = {
    "forbidden": 403, "wrong_state": 409, "conflict": 409, "already_exists": 409, "limit_exceeded": 429,
    "rate_exceeded": 429,
    "deadline_exceeded": 504, "internal": 500,
}  # fmt: skip


def not_resumed(sandbox_id: str, error: FirebrickError) -> Answer:
    return Answer(
        status=_WAKE_STATUS.get(error.code, 503),
        message=f"The sandbox is paused and could not be resumed: {error.message}",
        title="The Sandbox Could Not Be Resumed",
        sandbox_id=sandbox_id,
        may_retry=error.retryable,
    )


def state_changes(sandbox_id: str) -> Answer:
    return Answer(
        status=409,
        message="The sandbox is being paused; try again",
        title="The Sandbox Is Being Paused",
        sandbox_id=sandbox_id,
    )


def control_away() -> Answer:
    return Answer(status=503, message="The control plane does not answer at this moment; try again")


def port_closed(sandbox_id: str, port: int) -> Answer:
    return Answer(
        status=502,
        message="The sandbox is running but port is not open",
        title=f"There is no service running on port {port}",
        sandbox_id=sandbox_id,
        port=port,
        may_retry=False,
    )


def no_answer(sandbox_id: str, port: int) -> Answer:
    return Answer(
        status=502,
        message="The service in the sandbox closed the connection before it answered, or its answer is not HTTP",
        title=f"The service on port {port} did not answer",
        sandbox_id=sandbox_id,
        port=port,
        may_retry=False,
    )


def connect_timeout(sandbox_id: str, port: int) -> Answer:
    return Answer(
        status=504,
        message="The sandbox did not accept the connection in time",
        title="The Sandbox Does Not Answer",
        sandbox_id=sandbox_id,
        port=port,
        may_retry=False,
    )


def unreachable(sandbox_id: str, port: int) -> Answer:
    return Answer(
        status=503,
        message="The sandbox cannot be reached at this moment; try again",
        title="The Sandbox Cannot Be Reached",
        sandbox_id=sandbox_id,
        port=port,
    )


def routes_unknown() -> Answer:
    return Answer(status=503, message="The edge has just started and does not know the sandboxes yet; try again")


def too_many_of_sandbox(sandbox_id: str, limit_count: int) -> Answer:
    return Answer(
        status=429,
        message=f"The sandbox has reached its limit of {limit_count} concurrent connections",
        title="Too Many Connections",
        sandbox_id=sandbox_id,
        may_retry=False,
    )


def too_many() -> Answer:
    return Answer(status=503, message="The edge has reached its limit of concurrent connections; try again")
