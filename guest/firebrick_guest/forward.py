"""GET /firebrick/port/<port>: raw bytes between the asker and what listens on this machine's loopback.

The edge asks when a port of the machine's own address refuses it, for many a server listens on 127.0.0.1 only.
Nothing is listened on for it, so a program never finds its port taken by us.
"""

import asyncio

from firebrick_guest.errors import HttpError
from firebrick_guest.http import Exchange

PROTOCOL = "firebrick-tcp"
LOOPBACKS = ("127.0.0.1", "::1")
BUFFER_BYTES = 256 * 1024


async def forward_port(exchange: Exchange, name: str, own_port: int) -> None:
    """Returns when both directions have ended. Raises HttpError 400, 426, 502."""
    port = int(name) if name.isascii() and name.isdigit() and len(name) <= 5 else 0
    if not 0 < port < 65536 or port == own_port:
        raise HttpError(400, f"'{name}' is no port that can be forwarded")
    if exchange.head.headers.get("upgrade", "").lower() != PROTOCOL:
        raise HttpError(426, f"ask for this route with 'Upgrade: {PROTOCOL}'")
    inner = await _connect(port)
    outer = _Side()
    inner.other, outer.other = outer, inner
    outer.transport, early = exchange.switch_protocol(PROTOCOL, outer)
    try:
        if early:
            inner.transport.write(early)
        # What it said before we were ready for it waits in the kernel.
        inner.transport.resume_reading()
        await inner.lost
        await outer.lost
    finally:
        inner.transport.abort()
        outer.transport.abort()


async def _connect(port: int) -> "_Side":
    loop = asyncio.get_running_loop()
    for address in LOOPBACKS:
        try:
            _, side = await loop.create_connection(_Side, address, port)
        except OSError:
            continue
        return side
    raise HttpError(502, f"nothing listens on port {port} of this sandbox's loopback")


class _Side(asyncio.Protocol):
    """One end. Reading here stops while the other end's client does not read; an end of input is passed on."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.other: _Side | None = None
        self.is_ended = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=BUFFER_BYTES)
        transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        assert self.other
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        assert self.other
        self.is_ended = True
        if self.other.is_ended:
            self.other.transport.close()
            return False
        self.other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        assert self.other
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        assert self.other
        self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        if self.other:
            self.other.transport.close()
