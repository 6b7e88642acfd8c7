"""One request and its answer, between a client and a sandbox.

request head ─▶ sandbox            both bodies run at the same time, by callbacks, each under its own
request body ─▶ sandbox            back-pressure; the answer may begin, and end, before the request's
client ◀─ answer's head and body   body has been sent
"""

import asyncio
from enum import Enum, auto

from firebrick.edge.bodies import LAST_CHUNK, BadBody, BodyReader, LengthBody, UntilCloseBody, chunk
from firebrick.edge.heads import BadHead, RequestHead, ResponseHead, parse_response
from firebrick.edge.link import Link
from firebrick.edge.stats import Stats
from firebrick.edge.upstream import UpstreamLink

INTERIM_LIMIT_COUNT = 32
"""Answers of status 1xx to one request; a hostile server could send them for ever."""
JOIN_LIMIT_BYTES = 16 * 1024
"""Up to here head and first payload are joined into one write; above, the copy costs more than the call."""


class NoAnswer(Exception):
    """The sandbox's server ended the connection before an answer began, or what it sent is not HTTP."""

    def __init__(self, *, is_silent: bool) -> None:
        super().__init__()
        self.is_silent = is_silent


class Truncated(Exception):
    """The answer began and will never be complete: the client must see a break, not an end."""


class Ending(Enum):
    """What may happen to the client's connection afterwards."""

    KEEP = auto()
    CLOSE = auto()
    LINGER = auto()
    """Close, but first read what the client is still sending: else the answer could be lost on the way."""


class Exchange:
    """Runs once. `upstream` is in the end given back to its pool, closed or aborted."""

    def __init__(
        self, client: Link, upstream: UpstreamLink, request: RequestHead, body: BodyReader, stats: Stats
    ) -> None:
        self.has_begun = False
        """Whether the client has been sent a part of the final answer."""
        self._client = client
        self._upstream = upstream
        self._request = request
        self._request_body = body
        self._response_body: BodyReader = LengthBody(0)
        self._rechunk = False
        self._is_tunnel = False
        self._stats = stats
        self._bad_request: BadBody | None = None
        self._finished: asyncio.Future[None] | None = None

    async def run(self, head: bytes, *, may_keep_alive: bool) -> Ending:
        """Send the request, bring the answer.

        Raises:
            NoAnswer: nothing of an answer was sent to the client.
            BadBody: the client's chunks are malformed and nothing of an answer was sent to it.
            Truncated: see there.
        Cancel: the upstream connection is closed at once.
        """
        client, upstream = self._client, self._upstream
        upstream.feed_from(client)
        client.feed_from(upstream)
        is_reusable = False
        try:
            upstream.write(head)
            if not self._request_body.is_complete:
                client.attach(self._on_request_data)
            response = await self._response_head()
            if response.status == 101:
                await self._tunnel(response)
                return Ending.CLOSE
            keeps_alive = await self._answer(response, may_keep_alive=may_keep_alive)
            is_sent = self._request_body.is_complete
            is_reusable = is_sent and response.keeps_alive and not isinstance(self._response_body, UntilCloseBody)
            if not is_sent:
                return Ending.LINGER
            return Ending.KEEP if keeps_alive else Ending.CLOSE
        finally:
            upstream.on_end = None
            upstream.feed_from(None)
            client.feed_from(None)
            if not self._request_body.is_complete:
                client.detach(b"")
            if is_reusable:
                upstream.sandbox.give_back(upstream)
            elif self._is_tunnel:
                # What the client sent last (a WebSocket's close frame) is still to be delivered.
                upstream.close()
            else:
                upstream.abort()

    def _on_request_data(self, data: bytes) -> None:
        try:
            payload, surplus = self._request_body.feed(data)
        except BadBody as exc:
            self._bad_request = exc
            self._client.attach(_discard)
            self._upstream.abort()
            return
        self._stats.received_bytes += len(payload)
        if payload:
            if self._request.is_chunked:
                self._upstream.write_parts(chunk(payload))
            else:
                self._upstream.write(payload)
        if self._request_body.is_complete:
            if self._request.is_chunked:
                self._upstream.write(LAST_CHUNK)
            self._client.detach(surplus)

    async def _response_head(self) -> ResponseHead:
        """The final answer's head; answers of status 1xx are passed on as they come."""
        for _ in range(INTERIM_LIMIT_COUNT):
            try:
                raw = await self._upstream.read_head()
                response = None if raw is None else parse_response(raw)
            except BadHead as exc:
                raise NoAnswer(is_silent=False) from exc
            if response is None:
                if self._bad_request is not None:
                    raise self._bad_request
                raise NoAnswer(is_silent=not self._upstream.pending)
            if response.status == 101 and self._request.upgrade is None:
                raise NoAnswer(is_silent=False)
            if response.status == 101 or response.status >= 200:
                return response
            if self._wants_interim(response.status):
                self._client.write(response.to_client(b""))
        raise NoAnswer(is_silent=False)

    def _wants_interim(self, status: int) -> bool:
        if self._request.is_http10:
            return False
        return status != 100 or self._request.expects_continue

    async def _answer(self, response: ResponseHead, *, may_keep_alive: bool) -> bool:
        """Send head and body; whether the client's connection may be used again."""
        body = self._response_body = response.body(self._request.method)
        has_no_length = not isinstance(body, LengthBody)
        self._rechunk = has_no_length and not self._request.is_http10
        keeps_alive = may_keep_alive and self._request.wants_keep_alive and (self._rechunk or not has_no_length)
        head = response.to_client(self._framing(response, keeps_alive=keeps_alive))
        self.has_begun = True
        self._send_first(head)
        if not body.is_complete:
            await self._stream()
        elif self._upstream.pending:
            # More than the answer: whatever it is, it belongs to no request.
            self._upstream.abort()
        return keeps_alive

    def _framing(self, response: ResponseHead, *, keeps_alive: bool) -> bytes:
        lines = b"" if keeps_alive else b"Connection: close\r\n"
        if self._rechunk:
            return lines + b"Transfer-Encoding: chunked\r\n"
        if response.length_bytes is not None and response.status != 204:
            return lines + b"Content-Length: %d\r\n" % response.length_bytes
        return lines

    def _send_first(self, head: bytes) -> None:
        """The head, together with what of the body came in the same packet."""
        data, self._upstream.pending = self._upstream.pending, b""
        if not data or self._response_body.is_complete or len(data) > JOIN_LIMIT_BYTES:
            self._upstream.pending = data
            self._client.write(head)
            return
        try:
            payload, self._upstream.pending = self._response_body.feed(data)
        except BadBody as exc:
            raise Truncated from exc
        self._stats.sent_bytes += len(payload)
        parts = (head, *self._framed(payload))
        self._client.write(b"".join(parts))

    def _framed(self, payload: bytes) -> tuple[bytes, ...]:
        parts = (payload,) if payload else ()
        if not self._rechunk:
            return parts
        last = (LAST_CHUNK,) if self._response_body.is_complete else ()
        return (*(chunk(payload) if payload else ()), *last)

    async def _stream(self) -> None:
        """Run the answer's body through until it is complete. Raises Truncated."""
        self._finished = asyncio.get_running_loop().create_future()
        self._upstream.on_end = self._on_upstream_end
        self._upstream.attach(self._on_response_data)
        self._on_upstream_end()
        await self._finished

    def _on_response_data(self, data: bytes) -> None:
        try:
            payload, surplus = self._response_body.feed(data)
        except BadBody as exc:
            self._break(exc)
            return
        self._stats.sent_bytes += len(payload)
        if self._rechunk:
            if parts := self._framed(payload):
                self._client.write_parts(parts)
        elif payload:
            self._client.write(payload)
        if self._response_body.is_complete:
            self._upstream.detach(surplus)
            self._finish()

    def _on_upstream_end(self) -> None:
        """The sandbox's side ended: fine for a body without length if it ended well, else a break."""
        if self._finished is None or self._finished.done():
            return
        if isinstance(self._response_body, UntilCloseBody) and self._upstream.saw_eof:
            if self._rechunk:
                self._client.write(LAST_CHUNK)
            self._finish()
        elif self._upstream.saw_eof or self._upstream.is_lost:
            self._break(None)

    def _finish(self) -> None:
        if self._finished is not None and not self._finished.done():
            self._finished.set_result(None)

    def _break(self, cause: BadBody | None) -> None:
        if self._finished is not None and not self._finished.done():
            error = Truncated()
            error.__cause__ = cause
            self._finished.set_exception(error)

    async def _tunnel(self, response: ResponseHead) -> None:
        """After 101: bytes both ways, until either side ends."""
        upgrade = next((value for lower, _, value in response.headers if lower == b"upgrade"), b"websocket")
        self.has_begun = self._is_tunnel = True
        self._client.write(response.to_client(b"Connection: Upgrade\r\nUpgrade: " + upgrade + b"\r\n"))
        self._finished = asyncio.get_running_loop().create_future()
        self._upstream.on_end = self._finish
        self._client.attach(self._tunnel_in)
        self._upstream.attach(self._tunnel_out)
        if self._upstream.saw_eof or self._upstream.is_lost:
            self._finish()
        await self._finished

    def _tunnel_in(self, data: bytes) -> None:
        self._stats.received_bytes += len(data)
        self._upstream.write(data)

    def _tunnel_out(self, data: bytes) -> None:
        self._stats.sent_bytes += len(data)
        self._client.write(data)


def _discard(_: bytes) -> None:
    return None
