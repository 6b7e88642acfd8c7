"""The server name in a TLS ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3). Pure.

    record ─ 22, 3.x, length ─▶ handshake message, in one record or many ─ 1, length ─▶ extensions ─ 0 ─▶ the name

With an encrypted hello the name is that of its outer part, which the client shows to everybody; what it hides is
between it and the server of that name.
"""

from firebrick.network.name_filter.heads import HEAD_BYTES, Head, Incomplete, Malformed, Reading, head_of_host

HANDSHAKE, CLIENT_HELLO, SERVER_NAME, HOST_NAME = 22, 1, 0, 0
RECORD_HEADER_BYTES, MESSAGE_HEADER_BYTES = 5, 4
RECORD_BYTES = 1 << 14
RECORDS_COUNT = 64
"""A hello in more pieces is nobody's in earnest."""


class _Broken(Exception):
    """The message does not add up."""


class _Reader:
    """Takes fields from the front; a field that is longer than what is left is broken."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Broken
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """A field with its length, of `size` bytes, before it."""
        return self.take(self.number(size))


def read_client_hello(data: bytes) -> Reading:
    """What is known of a connection that began with `data`. Bytes behind the hello are not looked at."""
    message = bytearray()
    at = 0
    for _ in range(RECORDS_COUNT):
        header = data[at : at + RECORD_HEADER_BYTES]
        if header[:1] not in (b"", b"\x16") or header[1:2] not in (b"", b"\x03"):
            return Malformed("no TLS")
        if len(header) < RECORD_HEADER_BYTES:
            return Incomplete()
        length = int.from_bytes(header[3:])
        if not 0 < length <= RECORD_BYTES:
            return Malformed("a TLS record of an impossible length")
        at += RECORD_HEADER_BYTES
        message += data[at : at + length]
        if message and message[0] != CLIENT_HELLO:
            return Malformed("no ClientHello")
        if len(message) >= MESSAGE_HEADER_BYTES:
            wanted = MESSAGE_HEADER_BYTES + int.from_bytes(message[1:MESSAGE_HEADER_BYTES])
            if wanted > HEAD_BYTES:
                return Malformed("a ClientHello that is too long")
            if len(message) >= wanted:
                return _read_message(bytes(message[MESSAGE_HEADER_BYTES:wanted]))
        if len(data) < at + length:
            return Incomplete()
        at += length
    return Malformed("a ClientHello in too many records")


def _read_message(body: bytes) -> Head | Malformed:
    reader = _Reader(body)
    try:
        reader.take(2 + 32)
        reader.vector(1)
        if len(reader.vector(2)) % 2:
            raise _Broken
        reader.vector(1)
        if reader.is_done:
            return Head(None)
        extensions = _Reader(reader.vector(2))
        if not reader.is_done:
            raise _Broken
        names = []
        while not extensions.is_done:
            kind, value = extensions.number(2), extensions.vector(2)
            if kind == SERVER_NAME:
                names.append(_read_names(value))
    except _Broken:
        return Malformed("a ClientHello that does not add up")
    if not names:
        return Head(None)
    return names[0] if len(names) == 1 else Malformed("several server names")


def _read_names(value: bytes) -> Head | Malformed:
    outer = _Reader(value)
    entries = _Reader(outer.vector(2))
    kind, name = entries.number(1), entries.vector(2)
    if kind != HOST_NAME or not (outer.is_done and entries.is_done):
        return Malformed("several server names")
    return head_of_host(name)
