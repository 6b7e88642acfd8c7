"""What a process prints, on its way to those who follow it: a bounded queue for each stream."""

import asyncio
from binascii import b2a_base64
from collections.abc import Callable

from firebrick_guest.connect import frame
from firebrick_guest.errors import ConnectError

# One stream may hold up to a share unread, and another share on its way to the client. Few streams get big ones,
# and five hundred slow readers cost what sixty do.
LARGEST_SHARE_BYTES = 128 * 1024
SMALLEST_SHARE_BYTES = 16 * 1024
SHARED_BYTES = 8 * 1024 * 1024
# What a queued piece weighs beside its bytes.
PIECE_WEIGHT_BYTES = 128


class StreamBudget:
    """How much each open stream may hold."""

    def __init__(self) -> None:
        self.open_count = 0

    @property
    def share_bytes(self) -> int:
        return max(SMALLEST_SHARE_BYTES, min(LARGEST_SHARE_BYTES, SHARED_BYTES // max(1, self.open_count)))


def data_frames(pieces: list[tuple[str, bytes]], seq: int | None = None) -> bytes:
    """Envelope pieces of output, neighbours of the same kind joined: clients choke on thousands of tiny frames.
    With `seq`, the number of the first byte, each event tells where it begins."""
    frames = bytearray()
    position = 0
    while position < len(pieces):
        kind, data = pieces[position]
        position += 1
        joined = [data]
        size = len(data)
        while position < len(pieces) and pieces[position][0] == kind and size < LARGEST_SHARE_BYTES:
            joined.append(pieces[position][1])
            size += len(pieces[position][1])
            position += 1
        encoded = b2a_base64(b"".join(joined), newline=False)
        extra = b""
        if seq is not None:
            extra = b',"seq":"%d"' % seq
            seq += size
        frames += frame(b'{"event":{"data":{"%b":"%b"%b}}}' % (kind.encode(), encoded, extra))
    return bytes(frames)


class Subscriber:
    """One stream that follows a process. `seq` is the number of the first byte that was not taken yet."""

    def __init__(self, relieved: Callable[[], None], budget: StreamBudget, seq: int) -> None:
        self._relieved = relieved
        self._budget = budget
        self._pieces: list[tuple[str, bytes]] = []
        self._weight_bytes = 0
        self._enough_bytes = 1
        self._waiter: asyncio.Future[None] | None = None
        self.seq = seq
        self.end: bytes | ConnectError | None = None
        budget.open_count += 1

    @property
    def is_full(self) -> bool:
        """Then the process is not read any more, so that its pipe fills and it waits."""
        return self._weight_bytes >= self._budget.share_bytes

    @property
    def is_idle(self) -> bool:
        return not self._pieces and self.end is None

    @property
    def is_over(self) -> bool:
        """Whether everything was taken and nothing will come."""
        return not self._pieces and self.end is not None

    def push(self, kind: str, data: bytes) -> None:
        self._pieces.append((kind, data))
        self._weight_bytes += len(data) + PIECE_WEIGHT_BYTES
        self._wake()

    def finish(self, end: bytes | ConnectError) -> None:
        """Nothing follows: an enveloped end event, or the error that ends the stream."""
        if self.end is None:
            self.end = end
            self._wake()

    def close(self) -> None:
        self._budget.open_count -= 1
        self._pieces.clear()

    async def wait(self, timeout_s: float, enough_bytes: int = 1) -> bool:
        """Until the end or `enough_bytes` wait to be taken; False when `timeout_s` passes first."""
        if self.end is not None or self._weight_bytes >= enough_bytes:
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
        return self.end is not None or self._weight_bytes >= enough_bytes

    def take(self, limit_bytes: int) -> list[tuple[str, bytes]]:
        """What waits, up to the piece that passes `limit_bytes`."""
        if self._weight_bytes <= limit_bytes:
            taken, self._pieces, self._weight_bytes = self._pieces, [], 0
        else:
            count = weight = 0
            while count < len(self._pieces) and weight < limit_bytes:
                weight += len(self._pieces[count][1]) + PIECE_WEIGHT_BYTES
                count += 1
            taken = self._pieces[:count]
            del self._pieces[:count]
            self._weight_bytes -= weight
        self.seq += sum(len(data) for _, data in taken)
        self._relieved()
        return taken

    def _wake(self) -> None:
        if self._waiter and (self.end is not None or self._weight_bytes >= self._enough_bytes):
            _set(self._waiter)


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
