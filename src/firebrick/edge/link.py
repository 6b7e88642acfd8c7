"""One TCP connection of either side: heads are read from it, bodies run through it.

While a consumer is attached, bytes go straight from the socket's callback to it, without a task or a queue
between; else they wait in `pending`. Back-pressure: when our write buffer is full, the link that fills it (`source`)
stops reading until the buffer has drained. So no more than a few buffers of any stream are ever in memory.
"""

import asyncio
import socket as sockets
import struct
from collections.abc import Callable
from typing import Protocol, cast

from firebrick.edge.heads import BadHead

HEAD_LIMIT_BYTES = 64 * 1024
WRITE_HIGH_BYTES = 256 * 1024
WRITE_LOW_BYTES = 64 * 1024
FLUSH_TIMEOUT_S = 30.0
"""How long a closing connection may take to hand over what is in its write buffer."""
PROBE_IDLE_S, PROBE_INTERVAL_S, PROBE_COUNT = 60, 15, 4
"""Streams are never cut for being idle; a peer that is gone without a word is found by these probes."""

HOLD_PEER = 1
HOLD_PENDING = 2
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Source(Protocol):
    """What fills somebody's write buffer, and can be told to stop for a while."""

    def hold(self, why: int) -> None: ...

    def release(self, why: int) -> None: ...


class HeadTooLarge(BadHead):
    def __init__(self) -> None:
        super().__init__("The head is too long.", 431)


class Link(asyncio.Protocol):
    """Transport, flow control and head reading. Used from the loop's thread only."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.pending = b""
        self.saw_eof = False
        self.is_lost = False
        self.is_full = False
        self.source: Source | None = None
        self.on_end: Callable[[], None] | None = None
        self._consume: Callable[[bytes], None] | None = None
        self._arrived: asyncio.Future[None] | None = None
        self._holds = 0

    # The loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        tcp: sockets.socket = transport.get_extra_info("socket")
        tcp.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
        tcp.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
        tcp.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPIDLE, PROBE_IDLE_S)
        tcp.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPINTVL, PROBE_INTERVAL_S)
        tcp.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPCNT, PROBE_COUNT)

    def secured_by(self, transport: asyncio.Transport) -> None:
        """Go on over this transport, which encrypts for the one before."""
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._consume is not None:
            self._consume(data)
            return
        self.pending = self.pending + data if self.pending else data
        if len(self.pending) > HEAD_LIMIT_BYTES:
            self.hold(HOLD_PENDING)
        self._wake()

    def eof_received(self) -> bool | None:
        self.saw_eof = True
        self._ended()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self.source is not None:
            # Nobody will drain our buffer any more; what still comes is dropped by `write`.
            self.source.release(HOLD_PEER)
        self._ended()

    def pause_writing(self) -> None:
        self.is_full = True
        if self.source is not None:
            self.source.hold(HOLD_PEER)

    def resume_writing(self) -> None:
        self.is_full = False
        if self.source is not None:
            self.source.release(HOLD_PEER)

    # Our side.

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def write_parts(self, parts: tuple[bytes, ...]) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.writelines(parts)

    def feed_from(self, source: "Source | None") -> None:
        """Name who fills our write buffer from now on."""
        if self.source is not None and self.source is not source:
            self.source.release(HOLD_PEER)
        self.source = source
        if source is not None and self.is_full:
            source.hold(HOLD_PEER)

    def attach(self, consume: Callable[[bytes], None]) -> None:
        """Give what has come, and from now on everything that comes, to `consume`."""
        self._consume = consume
        data, self.pending = self.pending, b""
        self.release(HOLD_PENDING)
        if data:
            consume(data)

    def detach(self, surplus: bytes) -> None:
        """Keep what comes from now on; `surplus` is what the consumer had no use for."""
        self._consume = None
        self.pending = surplus

    async def more(self) -> None:
        """Wait for bytes, the end of the stream, or a wake-up by `_wake`."""
        self._arrived = asyncio.get_running_loop().create_future()
        try:
            await self._arrived
        finally:
            self._arrived = None

    async def read_head(self) -> bytes | None:
        """Take a whole head with its blank line; None when the stream ended before.

        Raises: HeadTooLarge; BadHead — a line that does not end in CRLF.
        """
        searched = 0
        while True:
            end = self.pending.find(b"\r\n\r\n", searched)
            if end == 0:
                # Empty lines before a request: some clients send one after a body.
                self.pending, searched = self.pending[2:], 0
                continue
            if end > HEAD_LIMIT_BYTES or (end < 0 and len(self.pending) > HEAD_LIMIT_BYTES):
                raise HeadTooLarge
            if end > 0:
                head, self.pending = self.pending[: end + 4], self.pending[end + 4 :]
                self.release(HOLD_PENDING)
                return head
            fresh = self.pending[searched:].lstrip(b"\n") if searched else self.pending
            if fresh.count(b"\n") != fresh.count(b"\r\n"):
                raise BadHead("A line of the head does not end in CRLF.")
            if self.saw_eof or self.is_lost:
                return None
            searched = max(0, len(self.pending) - 3)
            await self.more()

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.is_lost and not self.saw_eof and not self.transport.is_closing()

    def end_writing(self) -> None:
        """Say that no more will come; TLS has no way to say it and stay open."""
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        """Hand over what is buffered, then close; not later than FLUSH_TIMEOUT_S from now."""
        if self.transport is None or self.is_lost:
            return
        if self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(FLUSH_TIMEOUT_S, self.transport.abort)
        self.transport.close()

    def abort(self) -> None:
        """Close now; drop what is buffered."""
        if self.transport is not None and not self.is_lost:
            self.transport.abort()

    def reset(self) -> None:
        """Close now so that the peer sees an error, never a clean end: also a body that ends by closing."""
        if self.transport is not None and not self.is_lost:
            tcp: sockets.socket = self.transport.get_extra_info("socket")
            try:
                tcp.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET_ON_CLOSE)
            except OSError:
                pass  # the peer was faster: closed already
            self.transport.abort()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _ended(self) -> None:
        self._wake()
        if self.on_end is not None:
            self.on_end()

    def hold(self, why: int) -> None:
        if not self._holds and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        self._holds |= why

    def release(self, why: int) -> None:
        if self._holds:
            self._holds &= ~why
            if not self._holds and self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()
