"""A pure, incremental parser of multipart/form-data: fed with any slicing, it tells parts as events."""

from firebrick_guest.errors import HttpError

MAX_BOUNDARY_CHARS = 200
MAX_PART_HEAD_BYTES = 16 * 1024
MAX_PART_COUNT = 5000
MAX_PREAMBLE_BYTES = 64 * 1024

PartHead = dict[str, str]
Event = PartHead | bytes | None
"""A part begins (its name and filename), some of its data, or (None) it ends."""


def boundary_of(content_type: str) -> bytes:
    """Raises HttpError 400."""
    boundary = _parameters(content_type).get("boundary", "")
    if not boundary or len(boundary) > MAX_BOUNDARY_CHARS:
        raise HttpError(400, "the multipart body has no usable boundary")
    return boundary.encode("latin-1")


class MultipartParser:
    def __init__(self, boundary: bytes) -> None:
        # The first delimiter may stand at the very beginning, as if a line end were before it.
        self._buffer = bytearray(b"\r\n")
        self._delimiter = b"\r\n--" + boundary
        self._state = "preamble"
        self._part_count = 0
        self._skipped_bytes = 0

    def feed(self, data: bytes | bytearray) -> list[Event]:
        """Raises HttpError 400, after which the parser is not to be used."""
        self._buffer += data
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def finish(self) -> None:
        """The body has ended. Raises HttpError 400 when the last boundary was missing."""
        if self._state != "done":
            raise HttpError(400, "the multipart body ends without its last boundary")

    def _step(self, events: list[Event]) -> bool:
        if self._state in ("preamble", "data"):
            return self._until_delimiter(events)
        if self._state == "after":
            return self._after_delimiter()
        if self._state == "head":
            return self._part_head(events)
        self._buffer.clear()
        return False

    def _until_delimiter(self, events: list[Event]) -> bool:
        buffer = self._buffer
        found = buffer.find(self._delimiter)
        # Without a match, all but a possible beginning of a delimiter is data.
        take = found if found >= 0 else max(0, len(buffer) - len(self._delimiter) + 1)
        data = bytes(buffer[:take])
        del buffer[:take]
        if self._state == "data":
            if data:
                events.append(data)
        else:
            self._skipped_bytes += len(data)
            if self._skipped_bytes > MAX_PREAMBLE_BYTES:
                raise HttpError(400, "the multipart body does not begin with its boundary")
        if found < 0:
            return False
        del buffer[: len(self._delimiter)]
        if self._state == "data":
            events.append(None)
        self._state = "after"
        return True

    def _after_delimiter(self) -> bool:
        buffer = self._buffer
        if buffer.startswith(b"--"):
            self._state = "done"
            return True
        end = buffer.find(b"\r\n")
        if end < 0:
            if len(buffer) > MAX_PART_HEAD_BYTES:
                raise HttpError(400, "malformed multipart boundary")
            return False
        if buffer[:end].strip(b" \t"):
            raise HttpError(400, "malformed multipart boundary")
        # NOTE: the line end stays: a part without headers begins with the empty line alone.
        del buffer[:end]
        self._part_count += 1
        if self._part_count > MAX_PART_COUNT:
            raise HttpError(400, f"the multipart body has more than {MAX_PART_COUNT} parts")
        self._state = "head"
        return True

    def _part_head(self, events: list[Event]) -> bool:
        end = self._buffer.find(b"\r\n\r\n", 0, MAX_PART_HEAD_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_PART_HEAD_BYTES:
                raise HttpError(400, "a multipart part's head is too long")
            return False
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        self._state = "data"
        events.append(_disposition(head))
        return True


def _disposition(head: bytes) -> PartHead:
    for line in head.decode("utf-8", "surrogateescape").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            return _parameters(value)
    return {}


def _parameters(value: str) -> dict[str, str]:
    """`a; b=c; d="e \\" f"`: the parameters after the first semicolon, names in lower case."""
    found: dict[str, str] = {}
    rest = value.partition(";")[2]
    while rest:
        name, equals, rest = rest.partition("=")
        if not equals:
            break
        rest = rest.lstrip(" \t")
        if rest.startswith('"'):
            text, rest = _quoted(rest[1:])
            rest = rest.partition(";")[2]
        else:
            text, _, rest = rest.partition(";")
            text = text.strip(" \t")
        found.setdefault(name.strip(" \t").lower(), text)
    return found


def _quoted(text: str) -> tuple[str, str]:
    pieces: list[str] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char == '"':
            return "".join(pieces), text[position + 1 :]
        if char == "\\" and text[position + 1 : position + 2] in ('"', "\\"):
            position += 1
            char = text[position]
        pieces.append(char)
        position += 1
    return "".join(pieces), ""
