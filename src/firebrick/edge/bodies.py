"""Message bodies: taking the framing off what comes in, and putting our own on what goes out.

Each reader's `feed` takes what the socket gave and returns (payload, surplus): surplus is what follows the body.
Payload of a body with a length is the very object that was fed: a large transfer is counted, not copied.
"""

import re
from typing import Protocol

SIZE_LINE_LIMIT_BYTES = 1024
TRAILER_LIMIT_BYTES = 16 * 1024
LAST_CHUNK = b"0\r\n\r\n"

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?\Z")
_TRAILER_LINE = re.compile(rb"[!-9;-~]+:[\t\x20-\x7e\x80-\xff]*\Z")


class BadBody(Exception):
    """Chunked framing that breaks the rules; what follows on the connection can't be trusted."""


class BodyReader(Protocol):
    @property
    def is_complete(self) -> bool: ...

    def feed(self, data: bytes) -> tuple[bytes, bytes]: ...


class LengthBody:
    """Exactly as many bytes as Content-Length said; also the empty body, with 0."""

    __slots__ = ("remaining_bytes",)

    def __init__(self, length_bytes: int) -> None:
        self.remaining_bytes = length_bytes

    @property
    def is_complete(self) -> bool:
        return self.remaining_bytes == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if len(data) <= self.remaining_bytes:
            self.remaining_bytes -= len(data)
            return data, b""
        payload, surplus = data[: self.remaining_bytes], data[self.remaining_bytes :]
        self.remaining_bytes = 0
        return payload, surplus


class UntilCloseBody:
    """A response without a length: it ends with its connection."""

    __slots__ = ()
    is_complete = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""


class ChunkedBody:
    """Strict reader of chunks: lines end in CRLF, sizes are bare hexadecimal; extensions and trailers are
    checked, bounded and dropped."""

    __slots__ = ("_at_data_end", "_in_trailer", "_remaining_bytes", "_tail", "_trailer_bytes", "is_complete")

    def __init__(self) -> None:
        self.is_complete = False
        self._remaining_bytes = 0
        self._at_data_end = False
        self._in_trailer = False
        self._trailer_bytes = 0
        self._tail = b""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if self._tail:
            data = self._tail + data
        pieces: list[bytes] = []
        at = 0
        while not self.is_complete and at < len(data):
            if self._remaining_bytes:
                piece = data[at : at + self._remaining_bytes]
                pieces.append(piece)
                at += len(piece)
                self._remaining_bytes -= len(piece)
                self._at_data_end = self._remaining_bytes == 0
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._check_partial(data, at)
                break
            self._take_line(data[at:end])
            at = end + 2
        rest = data[at:]
        self._tail = b"" if self.is_complete else rest
        return b"".join(pieces), rest if self.is_complete else b""

    def _take_line(self, line: bytes) -> None:
        if self._at_data_end:
            if line:
                raise BadBody("A chunk is longer than its size says.")
            self._at_data_end = False
        elif self._in_trailer:
            self._take_trailer(line)
        else:
            match = _SIZE_LINE.match(line)
            if match is None or len(line) > SIZE_LINE_LIMIT_BYTES:
                raise BadBody("A chunk's size is not a hexadecimal number.")
            self._remaining_bytes = int(match[1], 16)
            self._in_trailer = self._remaining_bytes == 0

    def _take_trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if not line:
            self.is_complete = True
        elif self._trailer_bytes > TRAILER_LIMIT_BYTES or _TRAILER_LINE.match(line) is None:
            raise BadBody("The trailer is too long or malformed.")

    def _check_partial(self, data: bytes, at: int) -> None:
        """A line that has not ended yet: refuse now what no continuation can mend."""
        limit = TRAILER_LIMIT_BYTES if self._in_trailer else SIZE_LINE_LIMIT_BYTES
        line = data[at:]
        if len(line) > limit or b"\n" in line or b"\r" in line[:-1]:
            raise BadBody("A line of the chunked framing is too long or not ended by CRLF.")
        if self._at_data_end and line != b"\r":
            raise BadBody("A chunk is longer than its size says.")


def chunk(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """One chunk, as parts to be written together. `payload` is not empty: an empty chunk would end the body."""
    return b"%x\r\n" % len(payload), payload, b"\r\n"
