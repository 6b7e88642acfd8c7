"""What a process has printed, on its way to readers: a bounded ring for late ones, a queue for each present one."""

import asyncio
from binascii import b2a_base64
from collections import deque
from collections.abc import Callable

from firebrick_guest.connect import frame
from firebrick_guest.errors import ConnectError

RING_BYTES = 64 * 1024
# Above this much unsent output the process is not read any more, so that its pipe fills and it waits.
QUEUE_BYTES = 256 * 1024
MAX_EVENT_BYTES = 128 * 1024


def data_frames(pieces: list[tuple[str, bytes]]) -> bytes:
    """Envelope pieces of output, neighbours of the same kind joined: clients choke on thousands of tiny frames."""
    frames = bytearray()
    position = 0
    while position < len(pieces):
        kind, data = pieces[position]
        position += 1
        joined = [data]
        size = len(data)
        while position < len(pieces) and pieces[position][0] == kind and size < MAX_EVENT_BYTES:
            joined.append(pieces[position][1])
            size += len(pieces[position][1])
            position += 1
        encoded = b2a_base64(b"".join(joined), newline=False)
        frames += frame(b'{"event":{"data":{"%b":"%b"}}}' % (kind.encode(), encoded))
    return bytes(frames)


class Ring:
    """The last RING_BYTES of output, oldest dropped first."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[str, bytes]] = deque()
        self.size_bytes = 0

    def add(self, kind: str, data: bytes) -> None:
        self._pieces.append((kind, data))
        self.size_bytes += len(data)
        while self.size_bytes > RING_BYTES and len(self._pieces) > 1:
            self.size_bytes -= len(self._pieces.popleft()[1])

    def pieces(self) -> list[tuple[str, bytes]]:
        return list(self._pieces)

    def clear(self) -> None:
        self._pieces.clear()
        self.size_bytes = 0


class Subscriber:
    """One stream that follows a process."""

    def __init__(self, relieved: Callable[[], None]) -> None:
        self._relieved = relieved
        self._pieces: list[tuple[str, bytes]] = []
        self._size_bytes = 0
        self._enough_bytes = 1
        self._waiter: asyncio.Future[None] | None = None
        self.end: bytes | ConnectError | None = None

    @property
    def is_full(self) -> bool:
        return self._size_bytes >= QUEUE_BYTES

    @property
    def is_idle(self) -> bool:
        return not self._pieces and self.end is None

    def push(self, kind: str, data: bytes) -> None:
        self._pieces.append((kind, data))
        self._size_bytes += len(data)
        self._wake()

    def finish(self, end: bytes | ConnectError) -> None:
        """Nothing follows: an enveloped end event, or the error that ends the stream."""
        if self.end is None:
            self.end = end
            self._wake()

    async def wait(self, timeout_s: float, enough_bytes: int = 1) -> bool:
        """Until the end or `enough_bytes` wait to be taken; False when `timeout_s` passes first."""
        if self.end is not None or self._size_bytes >= enough_bytes:
            return True
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        self._enough_bytes = enough_bytes
        timer = loop.call_later(timeout_s, _set, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
        return self.end is not None or self._size_bytes >= enough_bytes

    def take(self) -> bytes:
        """Everything that waits, enveloped."""
        pieces, self._pieces, self._size_bytes = self._pieces, [], 0
        self._relieved()
        return data_frames(pieces)

    def _wake(self) -> None:
        if self._waiter and (self.end is not None or self._size_bytes >= self._enough_bytes):
            _set(self._waiter)


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
