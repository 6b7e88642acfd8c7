"""The HTTP/1.1 server: connections, request bodies and answers over asyncio.

One task per connection handles its requests in order. A handler gets an `Exchange`; when the client goes away
the handler is cancelled. Reading stops while nobody consumes (so a body never piles up) and `drain` waits
while the client does not read (so an answer never does).
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import BinaryIO

from firebrick_guest.errors import HttpError
from firebrick_guest.http_head import MAX_HEAD_BYTES, ChunkDecoder, Head, parse_head
from firebrick_guest.json_text import dump_json

READ_AHEAD_BYTES = 256 * 1024
WRITE_AHEAD_BYTES = 256 * 1024
PIECE_BYTES = 256 * 1024
# Of a file that is sent or received: larger pieces cost fewer hand-overs between threads.
BULK_BYTES = 1024 * 1024
MAX_CONNECTIONS = 2000
# The guest itself may not take them all: the rest is for those who come from outside.
MAX_OWN_CONNECTIONS = 1500
# Of the host, which asks one thing at a time, on a line of its own.
MAX_HOST_CONNECTIONS = 64
HOST_CID = 2
# A head or a piece of a body that is this late will not come: without a limit, a thousand idle sockets of a
# port scanner would hold their memory for the life of the sandbox.
HEAD_TIMEOUT_S = 30.0
BODY_TIMEOUT_S = 60.0
# After an early refusal the rest of the body is read and dropped, up to this, so that the client sees the
# answer and not a reset.
LINGER_BYTES = 64 * 1024 * 1024
LINGER_S = 5.0
# A client that has closed its sending half may still read, or be gone: what waits for nothing is done by then,
# and of a stream the second probe fails if nobody is there (the first is answered by a reset).
HALF_CLOSED_S = (0.2, 1.0)

REASONS = {
    200: "OK",
    204: "No Content",
    206: "Partial Content",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    416: "Range Not Satisfiable",
    426: "Upgrade Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    499: "Client Closed Request",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
}


class Exchange:
    """One request and its answer."""

    __slots__ = ("_connection", "_decoder", "_left", "head", "is_answered", "is_finished", "keep_alive")

    def __init__(self, connection: "Connection", head: Head) -> None:
        self._connection = connection
        self.head = head
        self.keep_alive = head.keep_alive
        self.is_answered = False
        self.is_finished = False
        self._left = head.length
        self._decoder = ChunkDecoder() if head.is_chunked else None

    @property
    def body_is_read(self) -> bool:
        return self._decoder.is_done if self._decoder else self._left == 0

    @property
    def local_port(self) -> int:
        return int(self._connection.transport.get_extra_info("sockname")[1])

    def expect_bulk(self) -> None:
        """From now on read up to BULK_BYTES of the body ahead of whoever consumes it."""
        self._connection.read_ahead_bytes = BULK_BYTES

    async def read(self) -> bytes | bytearray:
        """The next piece of the body, at most what is read ahead or PIECE_BYTES; b"" at its end. The caller owns it.

        Raises: HttpError 400 (broken chunks), 408 (the client stalls).
        """
        connection = self._connection
        if self.body_is_read:
            return b""
        connection.send_continue(self.head)
        while True:
            piece = self._take(connection)
            if piece or self.body_is_read:
                connection.relieve()
                return piece
            await connection.more(BODY_TIMEOUT_S)

    def _take(self, connection: "Connection") -> bytes | bytearray:
        buffer = connection.buffer
        if self._decoder:
            return self._decoder.feed(buffer, PIECE_BYTES)
        if len(buffer) <= self._left:
            # Nearly always: the buffer itself changes hands, and nothing is copied.
            connection.buffer = bytearray()
            self._left -= len(buffer)
            return buffer
        piece = buffer[: self._left]
        del buffer[: self._left]
        self._left = 0
        return piece

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises HttpError 413 when it is longer than `limit`."""
        if self.head.length > limit:
            raise HttpError(413, f"the body is longer than {limit} bytes")
        first = await self.read()
        if self.body_is_read and len(first) <= limit:
            return bytes(first)
        pieces = bytearray(first)
        while piece := await self.read():
            pieces += piece
            if len(pieces) > limit:
                raise HttpError(413, f"the body is longer than {limit} bytes")
        return bytes(pieces)

    def answer(self, status: int, headers: str = "", body: bytes = b"") -> None:
        """Send a complete answer. `headers` are ready lines, each ended by CR LF."""
        length = "" if status in (204, 304) else f"Content-Length: {len(body)}\r\n"
        self._begin(status, headers + length, body)
        self.is_finished = True

    def answer_json(self, status: int, value: object) -> None:
        self.answer(status, "Content-Type: application/json\r\n", dump_json(value))

    def begin_stream(self, status: int, headers: str, first: bytes = b"") -> None:
        """Start an answer whose length is not known. `first` goes out in the same packet."""
        self._connection.is_answering = True
        if self.head.keep_alive:
            self._begin(status, headers + "Transfer-Encoding: chunked\r\n", _chunk(first) if first else b"")
        else:
            # HTTP/1.0 knows no chunks, and whoever asked to close can read up to the end.
            self._begin(status, headers, first)

    def begin_length(self, status: int, headers: str, length: int) -> None:
        """Start an answer of `length` bytes, which `write_raw` or `send_file` sends."""
        self._connection.is_answering = True
        self._begin(status, f"{headers}Content-Length: {length}\r\n", b"")

    def write(self, piece: bytes) -> None:
        """Send a piece of a stream at once."""
        self._connection.transport.write(_chunk(piece) if self.head.keep_alive else piece)

    def write_raw(self, piece: bytes) -> None:
        self._connection.transport.write(piece)

    async def send_file(self, file: BinaryIO, offset: int, count: int) -> int:
        """Let the kernel send a part of a file that `begin_length` has promised; how many bytes it has sent, fewer only
        at the file's end.

        Raises: OSError, of the file or of the connection.
        """
        sent = 0
        while sent < count:
            if self._connection.transport.is_closing():
                raise ConnectionResetError
            # One piece at a time: in between others are served, and nobody waits for a whole file.
            piece_bytes = min(count - sent, BULK_BYTES)
            done = await asyncio.get_running_loop().sendfile(
                self._connection.transport, file, offset + sent, piece_bytes
            )
            sent += done
            if done < piece_bytes:
                break
        return sent

    def probe_with(self, piece: bytes) -> None:
        """Let the connection send `piece` of this stream at any time to learn whether the client is still there."""
        self._connection.probe = _chunk(piece) if self.head.keep_alive else piece

    def end_stream(self, last: bytes = b"") -> None:
        self._connection.probe = b""
        if self.head.keep_alive:
            last = (_chunk(last) if last else b"") + b"0\r\n\r\n"
        if last:
            self._connection.transport.write(last)
        self.is_finished = True

    async def drain(self, ahead_bytes: int = WRITE_AHEAD_BYTES) -> None:
        """Wait while the client has more than `ahead_bytes` to read."""
        self._connection.limit_write_ahead(ahead_bytes)
        if self._connection.is_write_paused:
            await self._connection.wait_writable()

    def switch_protocol(self, name: str, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        """Answer 101 and give the connection away: its transport, and what the client has sent already. The
        handler keeps it for as long as it runs."""
        connection = self._connection
        self.is_answered = self.is_finished = True
        self.keep_alive = False
        connection.transport.write(
            f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {name}\r\n\r\n".encode()
        )
        early = bytes(connection.buffer)
        connection.buffer.clear()
        connection.transport.set_protocol(protocol)
        connection.transport.resume_reading()
        return connection.transport, early

    def drop_others(self) -> None:
        """Cut every connection but this request's."""
        for connection in list(self._connection.server.connections):
            if connection is not self._connection:
                connection.transport.abort()

    def _begin(self, status: int, headers: str, body: bytes) -> None:
        self.is_answered = True
        closing = "" if self.keep_alive else "Connection: close\r\n"
        line = f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}\r\n{headers}{closing}\r\n"
        self._connection.transport.write(line.encode("latin-1") + body)


Handler = Callable[[Exchange], Awaitable[None]]


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


class Connection(asyncio.Protocol):
    """One client. `buffer` holds what came and is not consumed yet."""

    transport: asyncio.Transport

    def __init__(self, server: "HttpServer", *, is_host: bool = False) -> None:
        self._is_host = is_host
        self.server = server
        self._loop = server.loop
        self.buffer = bytearray()
        self.read_ahead_bytes = READ_AHEAD_BYTES
        self._is_read_paused = False
        self.is_write_paused = False
        self._write_ahead_bytes = WRITE_AHEAD_BYTES
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._is_lost = False
        self._is_half_closed = False
        self.is_answering = False
        self.probe = b""
        self._is_own = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_AHEAD_BYTES)
        server = self.server
        peer, here = (transport.get_extra_info(name)[0] for name in ("peername", "sockname"))
        own = not self._is_host and peer == here
        if not (self._is_place_for_host(peer) if self._is_host else self._is_place(own)):
            transport.abort()
            return
        self._is_own = own
        server.own_count += own
        server.host_count += self._is_host
        server.connections.add(self)
        self._task = self._loop.create_task(self._serve())

    def _is_place(self, own: bool) -> bool:
        server = self.server
        others = len(server.connections) - server.host_count
        if others < MAX_CONNECTIONS and not (own and server.own_count >= MAX_OWN_CONNECTIONS):
            return True
        server.refused()
        return False

    def _is_place_for_host(self, peer: int) -> bool:
        """Places of its own: whoever takes all others does not shut the host out."""
        return peer == HOST_CID and self.server.host_count < MAX_HOST_CONNECTIONS

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > self.read_ahead_bytes and not self._is_read_paused:
            self._is_read_paused = True
            self.transport.pause_reading()
        _wake(self._waiter)

    def eof_received(self) -> bool:
        self._is_half_closed = True
        _wake(self._waiter)
        self._look_after(*HALF_CLOSED_S)
        return True

    def _look_after(self, delay_s: float, *following_s: float) -> None:
        """Drop a half-closed connection when its client turns out to be gone."""

        def look() -> None:
            if not self.probe:
                # What is being sent tells us itself, by failing, when nobody takes it.
                if not self.is_answering:
                    self.transport.close()
                return
            self.transport.write(self.probe)
            if following_s:
                self._look_after(*following_s)

        self._loop.call_later(delay_s, look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        _wake(self._writable)
        if self._task:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.is_write_paused = True

    def resume_writing(self) -> None:
        self.is_write_paused = False
        _wake(self._writable)

    def limit_write_ahead(self, size_bytes: int) -> None:
        if size_bytes != self._write_ahead_bytes:
            self._write_ahead_bytes = size_bytes
            self.transport.set_write_buffer_limits(high=size_bytes)

    def relieve(self) -> None:
        """Go on reading once what was read ahead is consumed."""
        if self._is_read_paused and len(self.buffer) <= self.read_ahead_bytes // 2:
            self._is_read_paused = False
            self.transport.resume_reading()

    async def more(self, timeout_s: float | None) -> None:
        """Wait for bytes. Raises HttpError 408 after `timeout_s`, 400 when the client has said that none will come."""
        if self._is_lost:
            raise ConnectionResetError
        if self._is_half_closed:
            raise HttpError(400, "the request ends before its body does", close=True)
        self.relieve()
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, _stall, waiter) if timeout_s is not None else None
        try:
            await waiter
        finally:
            self._waiter = None
            if timer:
                timer.cancel()

    async def wait_writable(self) -> None:
        while self.is_write_paused and not self._is_lost:
            self._writable = self._loop.create_future()
            await self._writable
        if self._is_lost:
            raise ConnectionResetError

    def send_continue(self, head: Head) -> None:
        if not self.buffer and head.headers.pop("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def close(self) -> None:
        self.transport.abort()
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _serve(self) -> None:
        try:
            while head := await self._next_head():
                if not await self._one(Exchange(self, head)):
                    break
        except HttpError as exc:
            self._refuse(exc)
            await self._drop_rest()
        except (asyncio.CancelledError, ConnectionError):
            # The client went away or the server closes: nobody is left to be told.
            self.transport.abort()
        finally:
            self.server.connections.discard(self)
            self.server.own_count -= self._is_own
            self.server.host_count -= self._is_host
            self.transport.close()

    async def _one(self, exchange: Exchange) -> bool:
        """Handle one request; True when the connection may carry another."""
        try:
            await self.server.handler(exchange)
        except HttpError as exc:
            if exchange.is_answered:
                self.transport.abort()
                return False
            exchange.keep_alive = exchange.keep_alive and not exc.close
            exchange.answer_json(exc.status, {"code": exc.status, "message": exc.message})
            if exc.close:
                await self._drop_rest()
                return False
        self.is_answering = False
        if not exchange.is_finished:
            self.transport.abort()
            return False
        return await self._linger(exchange) and exchange.keep_alive

    async def _linger(self, exchange: Exchange) -> bool:
        self.read_ahead_bytes = READ_AHEAD_BYTES
        if exchange.body_is_read:
            return True
        dropped = 0
        try:
            async with asyncio.timeout(LINGER_S):
                while piece := await exchange.read():
                    dropped += len(piece)
                    if dropped > LINGER_BYTES:
                        return False
        except TimeoutError:
            return False
        return True

    async def _drop_rest(self) -> None:
        """Let the client read the last answer: to close while it still sends would reset what it has not read yet."""
        try:
            self.transport.write_eof()
            async with asyncio.timeout(LINGER_S):
                dropped = 0
                while dropped < LINGER_BYTES:
                    dropped += len(self.buffer)
                    self.buffer.clear()
                    await self.more(None)
        except (OSError, RuntimeError, HttpError):
            # TimeoutError is an OSError: it has had its time, or it has gone already.
            pass

    async def _next_head(self) -> Head | None:
        buffer = self.buffer
        searched = 0
        while True:
            # Empty lines before a request are allowed, and some clients send them.
            while buffer.startswith(b"\r\n"):
                del buffer[:2]
            end = buffer.find(b"\r\n\r\n", max(0, searched - 3), MAX_HEAD_BYTES + 4)
            if end >= 0:
                raw = bytes(buffer[:end])
                del buffer[: end + 4]
                return parse_head(raw)
            if self._is_half_closed:
                return None
            searched = len(buffer)
            if searched > MAX_HEAD_BYTES:
                raise HttpError(431, f"the head is longer than {MAX_HEAD_BYTES} bytes", close=True)
            await self.more(HEAD_TIMEOUT_S if buffer else None)

    def _refuse(self, exc: HttpError) -> None:
        body = dump_json({"code": exc.status, "message": exc.message})
        head = f"HTTP/1.1 {exc.status} {REASONS[exc.status]}\r\nContent-Type: application/json\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)


class HttpServer:
    """Listens, and owns every connection and its task."""

    def __init__(self, handler: Handler, refused: Callable[[], None]) -> None:
        self.handler = handler
        self.refused = refused
        self.loop = asyncio.get_running_loop()
        self.own_count = 0
        self.host_count = 0
        self.connections: set[Connection] = set()
        self._listeners: list[asyncio.Server] = []

    async def listen(self, host: str, port: int) -> int:
        """Accept connections from now on; the port that is listened on (`port` may be 0)."""
        server = await self.loop.create_server(lambda: Connection(self), host, port, backlog=1024)
        self._listeners.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def listen_for_host(self, port: int) -> None:
        """Accept connections from the host on a vsock as well. Raises OSError: this kernel has none."""
        own = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        own.bind((socket.VMADDR_CID_ANY, port))
        self._listeners.append(await self.loop.create_server(lambda: Connection(self, is_host=True), sock=own))

    async def close(self) -> None:
        """Drop every connection and wait until their handlers have ended."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            await connection.close()


def _stall(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(HttpError(408, "the request stalled", close=True))


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter and not waiter.done():
        waiter.set_result(None)
