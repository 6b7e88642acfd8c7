"""Pure parsing of HTTP/1.1: request heads, percent-encoding and chunked bodies. No I/O.

Strict on purpose: whatever two parsers could read differently (bare line feeds, folded headers, two lengths,
a length beside chunks) is refused, so that nobody can smuggle a request past the edge.
"""

from firebrick_guest.errors import HttpError

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADER_COUNT = 200
MAX_CHUNK_LINE_BYTES = 256
MAX_TRAILER_BYTES = 8 * 1024

_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS = b"0123456789"
_HEX = b"0123456789abcdefABCDEF"
_CONTROLS = bytes(code for code in range(32) if code != 9) + b"\x7f"


class Head:
    """One request's head. Header names are lower case; a repeated header's values are joined with ", "."""

    __slots__ = ("headers", "is_chunked", "keep_alive", "length", "method", "path", "query", "target")

    def __init__(self, method: str, target: str, version: bytes, headers: dict[str, str]) -> None:
        self.method = method
        self.target = target
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        connection = headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection if version == b"HTTP/1.1" else "keep-alive" in connection
        self.is_chunked, self.length = _framing(headers, version)

    def argument(self, name: str) -> str | None:
        """The first value of `name` in the query; bytes that are not UTF-8 survive as surrogates."""
        for pair in self.query.split("&"):
            key, _, value = pair.partition("=")
            if decode_component(key) == name:
                return decode_component(value)
        return None


def parse_head(raw: bytes) -> Head:
    """Read everything before the empty line.

    Raises: HttpError 400 (malformed), 431 (too many headers), 501 (a transfer coding other than chunked),
    505 (not HTTP/1.x); all of them end the connection.
    """
    lines = raw.split(b"\r\n")
    parts = lines[0].split(b" ")
    if len(parts) != 3 or not parts[0] or parts[0].translate(None, _TOKEN):
        raise HttpError(400, "malformed request line", close=True)
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise HttpError(505 if version.startswith(b"HTTP/") else 400, "only HTTP/1.1 is spoken here", close=True)
    if not target.startswith(b"/") or len(target.translate(None, _CONTROLS)) != len(target):
        raise HttpError(400, "malformed request target", close=True)
    if len(lines) - 1 > MAX_HEADER_COUNT:
        raise HttpError(431, f"more than {MAX_HEADER_COUNT} headers", close=True)
    return Head(method.decode("ascii"), target.decode("latin-1"), version, _headers(lines[1:]))


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name.translate(None, _TOKEN):
            raise HttpError(400, "malformed header", close=True)
        value = value.strip(b" \t")
        if len(value.translate(None, _CONTROLS)) != len(value):
            raise HttpError(400, "malformed header value", close=True)
        key = name.decode("ascii").lower()
        text = value.decode("latin-1")
        if key in headers:
            if key == "content-length" and headers[key] != text:
                raise HttpError(400, "two different content lengths", close=True)
            if key != "content-length":
                text = f"{headers[key]}, {text}"
        headers[key] = text
    return headers


def _framing(headers: dict[str, str], version: bytes) -> tuple[bool, int]:
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is not None:
        if length is not None or version == b"HTTP/1.0":
            raise HttpError(400, "ambiguous body length", close=True)
        if coding.lower() != "chunked":
            raise HttpError(501, "unknown transfer coding", close=True)
        return True, 0
    if length is None:
        return False, 0
    if not length.isascii() or not length.isdigit() or len(length) > 18:
        raise HttpError(400, "malformed content length", close=True)
    return False, int(length)


def decode_component(text: str) -> str:
    """Undo percent-encoding and `+` of one query component. Raises HttpError 400 on a broken escape."""
    if "%" not in text and "+" not in text:
        return text if text.isascii() else _text(text.encode("latin-1"))
    first, *rest = text.replace("+", " ").encode("latin-1").split(b"%")
    pieces = [first]
    for piece in rest:
        if len(piece) < 2 or piece[:2].translate(None, _HEX):
            raise HttpError(400, "malformed percent-encoding in the query")
        pieces.append(bytes.fromhex(piece[:2].decode("ascii")) + piece[2:])
    return _text(b"".join(pieces))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


class ChunkDecoder:
    """Undo the chunked transfer coding, fed with any slicing of the stream."""

    def __init__(self) -> None:
        self._left = 0
        self._state = "size"
        self._trailer_bytes = 0
        self.is_done = False

    def feed(self, buffer: bytearray, limit: int) -> bytes:
        """Take at most `limit` payload bytes off the front of `buffer`; b"" means: feed more, or done.

        Raises: HttpError 400, after which the stream has no meaning.
        """
        while not self.is_done:
            if self._state == "data":
                if not buffer:
                    return b""
                with memoryview(buffer) as view:
                    piece = bytes(view[: min(self._left, limit)])
                del buffer[: len(piece)]
                self._left -= len(piece)
                if not self._left:
                    self._state = "data_end"
                return piece
            line = self._line(buffer)
            if line is None:
                return b""
            self._take_line(line)
        return b""

    def _line(self, buffer: bytearray) -> bytes | None:
        if self._state == "data_end" and not b"\r\n".startswith(buffer[:2]):
            # Behind a chunk only a line end can follow: no need to wait for one that may never come.
            raise HttpError(400, "malformed chunk end", close=True)
        end = buffer.find(b"\n", 0, MAX_CHUNK_LINE_BYTES if self._state != "trailer" else MAX_TRAILER_BYTES)
        if end < 0:
            if len(buffer) >= (MAX_TRAILER_BYTES if self._state == "trailer" else MAX_CHUNK_LINE_BYTES):
                raise HttpError(400, "malformed chunk", close=True)
            return None
        if end == 0 or buffer[end - 1] != 13:
            raise HttpError(400, "malformed chunk", close=True)
        line = bytes(buffer[: end - 1])
        del buffer[: end + 1]
        return line

    def _take_line(self, line: bytes) -> None:
        if self._state == "size":
            size = line.partition(b";")[0].strip(b" \t")
            if not size or len(size) > 15 or size.translate(None, _HEX):
                raise HttpError(400, "malformed chunk size", close=True)
            self._left = int(size, 16)
            self._state = "data" if self._left else "trailer"
        elif self._state == "data_end":
            self._state = "size"
        elif not line:
            self.is_done = True
        else:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_TRAILER_BYTES:
                raise HttpError(400, "trailers too long", close=True)
