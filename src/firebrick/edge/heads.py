"""Heads of requests and responses: parsed strictly by llhttp, written anew by us, never passed through.

What leaves is built from what was understood; so two servers can't read one head in two ways.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import httptools

from firebrick.edge.bodies import BodyReader, ChunkedBody, LengthBody, UntilCloseBody

Header = tuple[bytes, bytes, bytes]
"""Lower-case name, name as it came, value."""

HOP_BY_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer",
        b"transfer-encoding", b"upgrade", b"http2-settings", b"content-length",
    )
)  # fmt: skip
"""Meant for one connection, or framing, which we write ourselves."""
_ADDED_BY_PROXIES = (b"x-forwarded-", b"forwarded", b"x-real-ip")
_OURS = b"x-firebrick-"
TRAFFIC_TOKEN = b"e2b-traffic-access-token"
"""For the edge alone: what runs in a sandbox must not learn who may visit it."""
SINGLE = frozenset(
    (
        b"host", b"content-length", b"transfer-encoding", b"e2b-sandbox-id", b"e2b-sandbox-port", b"expect",
        b"e2b-traffic-access-token",
    )
)  # fmt: skip
TARGET = re.compile(rb"(?:/[!\"$-~]*|\*)\Z")
"""Without `#`: a fragment is never sent, and parsers differ in what they make of one."""
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([!-~]*)\Z", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")


class BadHead(Exception):
    """A head that breaks the rules; what follows on the connection can't be trusted."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class _Collector:
    """What llhttp calls back."""

    __slots__ = ("headers", "reason", "target")

    def __init__(self) -> None:
        self.headers: list[Header] = []
        self.target = b""
        self.reason = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), name, value.strip(b" \t")))


@dataclass(slots=True, kw_only=True)
class RequestHead:
    """A request that may be forwarded. `target` is in origin form (or `*`)."""

    method: bytes
    target: bytes
    is_http10: bool
    headers: list[Header]
    host: bytes
    single: dict[bytes, bytes]
    connection: frozenset[bytes]
    length_bytes: int | None
    is_chunked: bool
    upgrade: bytes | None

    def get(self, name: bytes) -> bytes | None:
        """The first value of that (lower-case) header."""
        for lower, _, value in self.headers:
            if lower == name:
                return value
        return None

    def single_text(self, name: bytes) -> str | None:
        value = self.single.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def has_body(self) -> bool:
        return self.is_chunked or bool(self.length_bytes)

    @property
    def expects_continue(self) -> bool:
        return b"expect" in self.single and not self.is_http10

    @property
    def wants_keep_alive(self) -> bool:
        return not self.is_http10 and b"close" not in self.connection

    @property
    def is_repeatable(self) -> bool:
        """May be sent again when its connection died before an answer began."""
        return not self.has_body and self.method in (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE")

    def body(self) -> BodyReader:
        return ChunkedBody() if self.is_chunked else LengthBody(self.length_bytes or 0)

    def to_upstream(self, *, keep_forwarded: bool, host: bytes | None = None) -> bytes:
        """The head as the sandbox gets it.

        Args:
            host: told in place of the client's own.
            keep_forwarded: keep X-Forwarded-* and the like; only a proxy of ours may have set them.
        """
        parts = [self.method, b" ", self.target, b" HTTP/1.1\r\nHost: ", host or self.host, b"\r\n"]
        listed = self.connection
        for lower, name, value in self.headers:
            if lower in HOP_BY_HOP or lower == b"host" or lower in listed or lower.startswith(_OURS):
                continue
            if lower == TRAFFIC_TOKEN or (lower == b"expect" and self.is_http10):
                continue
            if not keep_forwarded and lower.startswith(_ADDED_BY_PROXIES):
                continue
            parts += (name, b": ", value, b"\r\n")
        if self.upgrade is not None:
            parts += (b"Connection: Upgrade\r\nUpgrade: ", self.upgrade, b"\r\n")
        if self.is_chunked:
            parts.append(b"Transfer-Encoding: chunked\r\n")
        elif self.length_bytes is not None:
            parts.append(b"Content-Length: %d\r\n" % self.length_bytes)
        parts.append(b"\r\n")
        return b"".join(parts)


@dataclass(slots=True, kw_only=True)
class ResponseHead:
    status: int
    reason: bytes
    headers: list[Header]
    connection: frozenset[bytes]
    length_bytes: int | None
    is_chunked: bool
    keeps_alive: bool

    def get(self, name: bytes) -> bytes | None:
        """The first value of that (lower-case) header."""
        return next((value for lower, _, value in self.headers if lower == name), None)

    def passed_on(self) -> Iterator[Header]:
        """What a client is told of the headers: all but those that speak of the connection."""
        return (item for item in self.headers if item[0] not in HOP_BY_HOP and item[0] not in self.connection)

    def body(self, method: bytes) -> BodyReader:
        if method == b"HEAD" or self.status < 200 or self.status in (204, 304):
            return LengthBody(0)
        if self.is_chunked:
            return ChunkedBody()
        return UntilCloseBody() if self.length_bytes is None else LengthBody(self.length_bytes)

    def to_client(self, framing: bytes) -> bytes:
        """The head as the client gets it; `framing` is our own header lines for body and connection."""
        parts = [b"HTTP/1.1 %d " % self.status, self.reason, b"\r\n"]
        for _, name, value in self.passed_on():
            parts += (name, b": ", value, b"\r\n")
        parts += (framing, b"\r\n")
        return b"".join(parts)


def parse_request(raw: bytes) -> RequestHead:
    """Parse a whole head, blank line included. Raises BadHead."""
    found = _Collector()
    parser = httptools.HttpRequestParser(found)
    _feed(parser, raw)
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise BadHead("Only HTTP/1.1 and HTTP/1.0 are spoken here.", 505)
    is_http10 = version == "1.0"
    method: bytes = parser.get_method()
    if method == b"CONNECT":
        raise BadHead("CONNECT is not offered here.", 405)
    single, connection = _collect(found.headers)
    host = single.get(b"host")
    if host is None:
        raise BadHead("The Host header is missing.")
    length_bytes, is_chunked = _framing(single, is_http10=is_http10)
    if single.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise BadHead("Only 'Expect: 100-continue' is understood.", 417)
    head = RequestHead(
        method=method,
        target=_origin_form(found.target, host),
        is_http10=is_http10,
        headers=found.headers,
        host=host,
        single=single,
        connection=connection,
        length_bytes=length_bytes,
        is_chunked=is_chunked,
        upgrade=None,
    )
    head.upgrade = _upgrade(head)
    return head


def parse_response(raw: bytes) -> ResponseHead:
    """Parse a whole head, blank line included. Raises BadHead."""
    found = _Collector()
    parser = httptools.HttpResponseParser(found)
    _feed(parser, raw)
    single, connection = _collect(found.headers)
    status: int = parser.get_status_code()
    if not 100 <= status <= 999:
        raise BadHead("The status is not a number of three digits.")
    is_http10 = parser.get_http_version() != "1.1"
    length_bytes, is_chunked = _framing(single, is_http10=False)
    return ResponseHead(
        status=status,
        reason=found.reason,
        headers=found.headers,
        connection=connection,
        length_bytes=length_bytes,
        is_chunked=is_chunked,
        keeps_alive=not is_http10 and b"close" not in connection,
    )


def _feed(parser: httptools.HttpRequestParser | httptools.HttpResponseParser, raw: bytes) -> None:
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # the head ended; what an upgrade means is decided by us
    except httptools.HttpParserError as exc:
        raise BadHead(f"The message is not valid HTTP/1.1: {str(exc)[:80]}.") from exc


def _collect(headers: list[Header]) -> tuple[dict[bytes, bytes], frozenset[bytes]]:
    """Headers that may stand only once, and the tokens of Connection. Raises BadHead."""
    single: dict[bytes, bytes] = {}
    connection: frozenset[bytes] = frozenset()
    for lower, name, value in headers:
        if lower in SINGLE:
            if lower in single:
                raise BadHead(f"The header {name.decode('latin-1')} stands twice.")
            single[lower] = value
        elif lower == b"connection":
            connection |= {token.strip(b" \t").lower() for token in value.split(b",")}
    return single, connection


def _framing(single: dict[bytes, bytes], *, is_http10: bool) -> tuple[int | None, bool]:
    length, encoding = single.get(b"content-length"), single.get(b"transfer-encoding")
    if encoding is not None:
        if length is not None or is_http10 or encoding.lower() != b"chunked":
            raise BadHead("Transfer-Encoding may only be 'chunked', in HTTP/1.1 and without Content-Length.")
        return None, True
    return length_of(single), False


def length_of(single: dict[bytes, bytes]) -> int | None:
    """What Content-Length says. Raises BadHead."""
    length = single.get(b"content-length")
    if length is None:
        return None
    if _LENGTH.match(length) is None:
        raise BadHead("Content-Length is not a number.")
    return int(length)


def _origin_form(target: bytes, host: bytes) -> bytes:
    if TARGET.match(target):
        return target
    match = _ABSOLUTE.match(target)
    if match is None:
        raise BadHead("The request target is neither a path nor an http URL.")
    if match[1].lower() != host.lower():
        raise BadHead("The request target and the Host header name different hosts.")
    path = match[2] if match[2].startswith(b"/") else b"/" + match[2]
    if not TARGET.match(path):
        raise BadHead("The request target holds a fragment.")
    return path


def _upgrade(head: RequestHead) -> bytes | None:
    """The protocol the client wants to change to; None when it may not.

    HTTP/2 in clear text would carry requests past every check here; a body would come before the change.
    """
    wanted = head.get(b"upgrade")
    if wanted is None or b"upgrade" not in head.connection or head.is_http10 or head.has_body:
        return None
    protocols = {token.strip(b" \t").lower().partition(b"/")[0] for token in wanted.split(b",")}
    return None if protocols & {b"h2c", b"h2", b"http", b"tls"} else wanted
