"""The edge's own answers: what a client reads when no sandbox answered.

Shape and words are E2B's, whose clients look for "was not found" and "port is not open". JSON for programs, a page
for browsers. Everything reflected is quoted or escaped.
"""

import json
from dataclasses import dataclass
from html import escape
from http import HTTPStatus

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

    def render(self, *, for_browser: bool, with_body: bool, keeps_alive: bool) -> bytes:
        if self.text:
            kind, body = "text/plain; version=0.0.4; charset=utf-8", self.text.encode()
        elif for_browser and self.title:
            kind, body = "text/html; charset=utf-8", self._page().encode()
        else:
            kind, body = "application/json; charset=utf-8", self._json().encode()
        lines = [
            f"HTTP/1.1 {self.status} {_phrase(self.status)}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Access-Control-Allow-Origin: *",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
        ]
        if not self.may_retry:
            # Without it E2B's client would ask thrice more for a sandbox that is gone.
            lines.append("Should-Retry: false")
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
