"""One connection of a guest: read its head, decide, dial, and pass bytes both ways until both sides are done."""

import asyncio
import socket
import struct
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from firebrick.network.name_filter.decision import HTTP_PORT, Allow, Basis, Reason, Refuse, Rules, choose, decide
from firebrick.network.name_filter.heads import HEAD_BYTES, Head, Incomplete
from firebrick.network.name_filter.http_head import read_request_head
from firebrick.network.name_filter.tls_hello import read_client_hello

HEAD_S = 10.0
HEAD_READS_COUNT = 128
"""Each look at a growing head costs all of it again; who sends byte by byte is nobody in earnest."""
DIAL_S = 10.0
DIALLED_COUNT = 3
CHUNK_BYTES = 32 * 1024
KEEPALIVE_S = 60

_SO_ORIGINAL_DST = 80


class Surroundings(Protocol):
    """What a visit asks of the slot it comes from."""

    @property
    def rules(self) -> Rules:
        """As they are now."""
        ...

    @property
    def closed(self) -> tuple[IPv4Network, ...]: ...

    async def resolve(self, name: str) -> list[IPv4Address]: ...

    def refused(self, visit: "Visit", reason: Reason) -> None:
        """Called once for a visit that was cut."""
        ...


class Visit:
    """`run` is its task; cancelling it cuts the connection. `address` is where the guest wanted to, then where we are
    connected to."""

    def __init__(self, guest: socket.socket, around: Surroundings) -> None:
        will_reset(guest)
        self._guest = guest
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._server: socket.socket | None = None
        self.address, self.port = original_destination(guest)
        self.name: str | None = None
        self.is_decided = False

    def judge(self) -> Allow | Refuse:
        """Of what it is now, by the rules as they are now."""
        return decide(self._around.rules, self._around.closed, self.address, self.port, self.name)

    async def run(self) -> None:
        """Both sockets are closed afterwards: in order when both sides ended so, else with a reset."""
        is_done = False
        try:
            is_done = await self._serve()
        except* OSError:
            # Either side went away.
            pass
        finally:
            for end in (self._guest, self._server):
                if end is not None:
                    will_reset(end, on_close=not is_done)
                    end.close()

    async def _serve(self) -> bool:
        head = await self._read_head()
        if isinstance(head, Reason):
            return self._refuse(head)
        verdict = self.judge()
        if isinstance(verdict, Refuse):
            return self._refuse(verdict.reason)
        reason = await self._dial(verdict.by)
        if reason is not None or self._server is None:
            return self._refuse(reason or Reason.UNREACHABLE)
        # NOTE: the rules may have changed while we dialled; from here on a change finds this visit itself.
        verdict = self.judge()
        if isinstance(verdict, Refuse):
            return self._refuse(verdict.reason)
        self.is_decided = True
        await self._loop.sock_sendall(self._server, head)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pass_on(self._guest, self._server))
            group.create_task(self._pass_on(self._server, self._guest))
        return True

    def _refuse(self, reason: Reason) -> bool:
        self._around.refused(self, reason)
        return False

    async def _read_head(self) -> bytes | Reason:
        """What it sent first, and in `name` whom it asked for."""
        read = read_request_head if self.port == HTTP_PORT else read_client_hello
        data = b""
        try:
            async with asyncio.timeout(HEAD_S):
                for _ in range(HEAD_READS_COUNT):
                    chunk = await self._loop.sock_recv(self._guest, HEAD_BYTES - len(data))
                    data += chunk
                    reading = read(data)
                    if isinstance(reading, Head):
                        self.name = reading.name
                        return data
                    if not isinstance(reading, Incomplete) or not chunk or len(data) >= HEAD_BYTES:
                        return Reason.MALFORMED
        except TimeoutError:
            return Reason.TOO_SLOW
        return Reason.MALFORMED

    async def _dial(self, by: Basis) -> Reason | None:
        """Connect; None when it worked."""
        addresses = [self.address]
        if by is Basis.NAME:
            assert self.name is not None
            found = await self._around.resolve(self.name)
            addresses = choose(found, self._around.closed, self.address)
            if not addresses:
                return Reason.CLOSED if found else Reason.UNRESOLVED
        for address in addresses[:DIALLED_COUNT]:
            self._server = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                async with asyncio.timeout(DIAL_S):
                    await self._loop.sock_connect(self._server, (str(address), self.port))
            except (OSError, TimeoutError):
                self._server.close()
                self._server = None
                continue
            for option, value in (
                (socket.TCP_NODELAY, 1), (socket.TCP_KEEPIDLE, KEEPALIVE_S), (socket.TCP_KEEPINTVL, KEEPALIVE_S),
            ):  # fmt: skip
                self._server.setsockopt(socket.IPPROTO_TCP, option, value)
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            will_reset(self._server)
            self.address = address
            return None
        return Reason.UNREACHABLE

    async def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        while chunk := await self._loop.sock_recv(source, CHUNK_BYTES):
            await self._loop.sock_sendall(sink, chunk)
        sink.shutdown(socket.SHUT_WR)


def original_destination(guest: socket.socket) -> tuple[IPv4Address, int]:
    """Where the guest dialled, before the slot's rules sent it to us; the kernel's word. Raises OSError."""
    raw = guest.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
    port, address = struct.unpack_from("!2xH4s", raw)
    return IPv4Address(address), port


def will_reset(end: socket.socket, *, on_close: bool = True) -> None:
    """Whether a close, be it by our death, tells the other side that something is missing."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on_close, 0))
