"""One request and its answer, between a client and a sandbox.

request head ─▶ sandbox            both bodies run at the same time, by callbacks, each under its own
request body ─▶ sandbox            back-pressure; the answer may begin, and end, before the request's
client ◀─ answer's head and body   body has been sent
"""

import asyncio
from enum import Enum, auto

from firebrick.edge.bodies import LAST_CHUNK, BadBody, BodyReader, LengthBody, UntilCloseBody, chunk
from firebrick.edge.downstream import Downstream
from firebrick.edge.heads import BadHead, RequestHead, ResponseHead, parse_response
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

    def __init__(self, client: Downstream, upstream: UpstreamLink, request: RequestHead, stats: Stats) -> None:
        self.has_begun = False
        """Whether the client has been sent a part of the final answer."""
        self._client = client
        self._upstream = upstream
        self._request = request
        self._response_body: BodyReader = LengthBody(0)
        self._is_tunnel = False
        self._stats = stats
        self._bad_request: BadBody | None = None
        self._held: list[bytes] | None = None
        """What is to go to the sandbox in one write, while it is being gathered."""
        self._finished: asyncio.Future[None] | None = None

    async def run(self, head: bytes) -> Ending:
        """Send the request, bring the answer.

        Raises:
            NoAnswer: nothing of an answer was sent to the client.
            BadBody: the client's chunks are malformed and nothing of an answer was sent to it.
            Truncated: see there.
        Cancel: the upstream connection is closed at once.
        """
        client, upstream = self._client, self._upstream
        upstream.feed_from(client.source)
        client.feed_from(upstream)
        is_reusable = False
        try:
            await self._send_request(head)
            response = await self._response_head()
            if response.status == 101:
                await self._tunnel(response)
                return Ending.CLOSE
            await self._answer(response)
            is_sent = client.is_body_complete
            is_reusable = is_sent and response.keeps_alive and not isinstance(self._response_body, UntilCloseBody)
            if not is_sent:
                return Ending.LINGER
            return Ending.KEEP if client.keeps_alive else Ending.CLOSE
        finally:
            upstream.on_end = None
            upstream.feed_from(None)
            client.feed_from(None)
            client.stop_body()
            if is_reusable:
                upstream.sandbox.give_back(upstream)
            elif self._is_tunnel:
                # What the client sent last (a WebSocket's close frame) is still to be delivered.
                upstream.close()
            else:
                upstream.abort()

    async def _send_request(self, head: bytes) -> None:
        """Send the head, with what has come of the body; the rest follows by itself."""
        client = self._client
        if client.is_body_complete:
            self._upstream.write(head)
            return
        # Clients send head and body in two writes, one right after the other: by the next turn of the loop both are
        # here, and the sandbox is woken once instead of twice.
        await asyncio.sleep(0)
        self._held = held = [head]
        client.read_body(self._on_request_data, self._on_bad_request)
        self._held = None
        self._upstream.write_parts(tuple(held))

    def _on_request_data(self, payload: bytes, is_last: bool) -> None:
        self._stats.received_bytes += len(payload)
        parts: tuple[bytes, ...] = (payload,) if payload else ()
        if self._request.is_chunked:
            parts = (*(chunk(payload) if payload else ()), *((LAST_CHUNK,) if is_last else ()))
        if self._held is not None:
            self._held += parts
        elif len(parts) == 1:
            self._upstream.write(parts[0])
        elif parts:
            self._upstream.write_parts(parts)

    def _on_bad_request(self, error: BadBody) -> None:
        self._bad_request = error
        self._upstream.abort()

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
            self._client.interim(response)
        raise NoAnswer(is_silent=False)

    async def _answer(self, response: ResponseHead) -> None:
        """Send head and body."""
        body = self._response_body = response.body(self._request.method)
        self.has_begun = True
        self._client.begin(response, body, self._first_payload())
        if not body.is_complete:
            await self._stream()
        elif self._upstream.pending:
            # More than the answer: whatever it is, it belongs to no request.
            self._upstream.abort()

    def _first_payload(self) -> bytes:
        """What of the body came in the same packet as the head. Raises Truncated."""
        data = self._upstream.pending
        if not data or self._response_body.is_complete or len(data) > JOIN_LIMIT_BYTES:
            return b""
        try:
            payload, self._upstream.pending = self._response_body.feed(data)
        except BadBody as exc:
            raise Truncated from exc
        self._stats.sent_bytes += len(payload)
        return payload

    async def _stream(self) -> None:
        """Run the answer's body through until it is complete. Raises Truncated."""
        self._finished = asyncio.get_running_loop().create_future()
        self._upstream.on_end = self._on_upstream_end
        self._upstream.attach(self._on_response_data)
        self._on_upstream_end()
        await self._finished

    def _on_response_data(self, data: bytes) -> None:
        body = self._response_body
        try:
            payload, surplus = body.feed(data)
        except BadBody as exc:
            self._break(exc)
            return
        self._stats.sent_bytes += len(payload)
        if payload or body.is_complete:
            self._client.send(payload, is_last=body.is_complete)
        if body.is_complete:
            self._upstream.detach(surplus)
            self._finish()

    def _on_upstream_end(self) -> None:
        """The sandbox's side ended: fine for a body without length if it ended well, else a break."""
        if self._finished is None or self._finished.done():
            return
        if isinstance(self._response_body, UntilCloseBody) and self._upstream.saw_eof:
            self._client.send(b"", is_last=True)
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
        self.has_begun = self._is_tunnel = True
        self._finished = asyncio.get_running_loop().create_future()
        self._upstream.on_end = self._finish
        self._client.tunnel(response, self._tunnel_in)
        self._upstream.attach(self._tunnel_out)
        if self._upstream.saw_eof or self._upstream.is_lost:
            self._finish()
        await self._finished

    def _tunnel_in(self, data: bytes) -> None:
        self._stats.received_bytes += len(data)
        self._upstream.write(data)

    def _tunnel_out(self, data: bytes) -> None:
        self._stats.sent_bytes += len(data)
        self._client.send(data, is_last=False)
