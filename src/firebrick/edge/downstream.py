"""The client's side of one exchange: what an exchange needs of it, whichever version of HTTP the client speaks.

`HttpSide` is the side of HTTP/1.1, over a `Link`; a stream of HTTP/2 (`h2_stream.py`) is the other.
"""

from collections.abc import Callable
from typing import Protocol

from firebrick.edge.bodies import LAST_CHUNK, BadBody, BodyReader, LengthBody, chunk
from firebrick.edge.heads import RequestHead, ResponseHead
from firebrick.edge.link import Link, Source

PayloadSink = Callable[[bytes, bool], None]
"""Takes a part of a request's body, and whether it is the last."""


class Downstream(Protocol):
    """Calls come in the order `interim`*, then `begin` and `send` until `is_last`, or `tunnel`."""

    keeps_alive: bool
    """After `begin`: whether another exchange may follow on the same connection."""

    @property
    def source(self) -> Source:
        """Where the request's body comes from: held while the sandbox does not take it."""
        ...

    @property
    def is_body_complete(self) -> bool: ...

    def read_body(self, sink: PayloadSink, on_bad: Callable[[BadBody], None]) -> None:
        """Give `sink` what has come of the body, and from now on everything that comes."""
        ...

    def stop_body(self) -> None:
        """The rest of the body is of no use to the exchange."""
        ...

    def feed_from(self, source: Source | None) -> None:
        """Name who fills our buffer from now on: held while the client does not read."""
        ...

    def interim(self, response: ResponseHead) -> None: ...

    def begin(self, response: ResponseHead, body: BodyReader, payload: bytes) -> None:
        """The answer's head, with a first part of its body."""
        ...

    def send(self, payload: bytes, *, is_last: bool) -> None: ...

    def tunnel(self, response: ResponseHead, consume: Callable[[bytes], None]) -> None:
        """Answer 101; from now on bytes pass as they are. Only for a request with `upgrade`."""
        ...

    def reset(self) -> None:
        """Break the answer so that it can't be taken for complete."""
        ...


class HttpSide:
    """One request and its answer on an HTTP/1.1 connection."""

    __slots__ = ("_link", "_rechunk", "_request", "body", "keeps_alive")

    def __init__(self, link: Link, request: RequestHead, *, may_keep_alive: bool) -> None:
        self._link = link
        self._request = request
        self.body: BodyReader = request.body()
        self.keeps_alive = may_keep_alive and request.wants_keep_alive
        self._rechunk = False

    @property
    def source(self) -> Source:
        return self._link

    @property
    def is_body_complete(self) -> bool:
        return self.body.is_complete

    def read_body(self, sink: PayloadSink, on_bad: Callable[[BadBody], None]) -> None:
        link, body = self._link, self.body

        def take(data: bytes) -> None:
            try:
                payload, surplus = body.feed(data)
            except BadBody as exc:
                link.attach(_discard)
                on_bad(exc)
                return
            if body.is_complete:
                link.detach(surplus)
            sink(payload, body.is_complete)

        link.attach(take)

    def stop_body(self) -> None:
        if not self.body.is_complete:
            self._link.detach(b"")

    def feed_from(self, source: Source | None) -> None:
        self._link.feed_from(source)

    def interim(self, response: ResponseHead) -> None:
        if self._request.is_http10 or (response.status == 100 and not self._request.expects_continue):
            return
        self._link.write(response.to_client(b""))

    def begin(self, response: ResponseHead, body: BodyReader, payload: bytes) -> None:
        has_no_length = not isinstance(body, LengthBody)
        self._rechunk = has_no_length and not self._request.is_http10
        self.keeps_alive = self.keeps_alive and (self._rechunk or not has_no_length)
        head = response.to_client(self._framing(response))
        parts = self._framed(payload, is_last=body.is_complete)
        self._link.write(b"".join((head, *parts)) if parts else head)

    def _framing(self, response: ResponseHead) -> bytes:
        lines = b"" if self.keeps_alive else b"Connection: close\r\n"
        if self._rechunk:
            return lines + b"Transfer-Encoding: chunked\r\n"
        if response.length_bytes is not None and response.status != 204:
            return lines + b"Content-Length: %d\r\n" % response.length_bytes
        return lines

    def _framed(self, payload: bytes, *, is_last: bool) -> tuple[bytes, ...]:
        parts = (payload,) if payload else ()
        if not self._rechunk:
            return parts
        last = (LAST_CHUNK,) if is_last else ()
        return (*(chunk(payload) if payload else ()), *last)

    def send(self, payload: bytes, *, is_last: bool) -> None:
        if self._rechunk:
            if parts := self._framed(payload, is_last=is_last):
                self._link.write_parts(parts)
        elif payload:
            self._link.write(payload)

    def tunnel(self, response: ResponseHead, consume: Callable[[bytes], None]) -> None:
        upgrade = response.get(b"upgrade") or b"websocket"
        self._link.write(response.to_client(b"Connection: Upgrade\r\nUpgrade: " + upgrade + b"\r\n"))
        self._link.attach(consume)

    def reset(self) -> None:
        self._link.reset()


def _discard(_: bytes) -> None:
    return None
