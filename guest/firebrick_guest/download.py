"""Send a file: whole, in part (Range) or not at all (If-None-Match, If-Modified-Since)."""

import asyncio
import os
import stat
import time
import zlib
from calendar import timegm

from firebrick_guest.errors import HttpError, http_error_of
from firebrick_guest.http import PIECE_BYTES, Exchange

_TYPES = {
    "css": "text/css; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "gif": "image/gif",
    "htm": "text/html; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "md": "text/markdown; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "wasm": "application/wasm",
    "webp": "image/webp",
    "xml": "text/xml; charset=utf-8",
    "zip": "application/zip",
}
_CONDITIONS = ("range", "if-range", "if-none-match", "if-modified-since")
_PLAIN = frozenset("!#$&+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


async def send_file(exchange: Exchange, path: str) -> None:
    """Raises HttpError: 400 (not a regular file), 404, 406 (no acceptable coding), 416 (range outside)."""
    asked = exchange.head.headers
    coding = content_coding(asked.get("accept-encoding", ""), is_partial=any(name in asked for name in _CONDITIONS))
    descriptor = _open(path)
    try:
        found = os.fstat(descriptor)
        headers = _headers(path, found)
        if _is_unchanged(asked, found):
            exchange.answer(304, headers)
            return
        wanted = asked.get("range")
        window = _window(wanted, found.st_size) if wanted and _range_holds(asked, found) else None
        if window:
            first, last = window
            headers += f"Content-Range: bytes {first}-{last}/{found.st_size}\r\n"
            await _send_part(exchange, descriptor, 206, headers, first, last - first + 1)
        elif coding == "gzip":
            await _send_packed(exchange, descriptor, f"{headers}Content-Encoding: gzip\r\n")
        else:
            await _send_all(exchange, descriptor, headers, found.st_size)
    except OSError as exc:
        raise http_error_of(exc, f"cannot read {path}") from exc
    finally:
        os.close(descriptor)


async def _send_all(exchange: Exchange, descriptor: int, headers: str, size_bytes: int) -> None:
    # The size that stat tells is not to be trusted when it is small: files of /proc say 0 and of /sys 4096. So a short
    # file is read first and its length told, and one that is longer than its size is sent in chunks up to its end.
    first = _read(descriptor, PIECE_BYTES)
    second = _read(descriptor, PIECE_BYTES) if first else b""
    if not second:
        exchange.answer(200, headers, first)
        return
    if size_bytes > len(first) + len(second):
        await _send_part(exchange, descriptor, 200, headers, 0, size_bytes)
        return
    exchange.begin_stream(200, headers, first)
    piece = second
    while piece:
        exchange.write(piece)
        await exchange.drain()
        piece = await asyncio.to_thread(_read, descriptor, PIECE_BYTES)
    exchange.end_stream()


async def _send_part(exchange: Exchange, descriptor: int, status: int, headers: str, first: int, length: int) -> None:
    exchange.begin_length(status, headers, length)
    with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
        sent = await exchange.send_file(file, first, length)
    # If the file has shrunk, only breaking the connection tells the client that something is missing.
    exchange.is_finished = sent == length


async def _send_packed(exchange: Exchange, descriptor: int, headers: str) -> None:
    packer = zlib.compressobj(level=1, wbits=31)
    exchange.begin_stream(200, headers)
    while piece := await asyncio.to_thread(_read_packed, descriptor, packer):
        exchange.write(piece)
        await exchange.drain()
    exchange.end_stream(packer.flush())


def _read_packed(descriptor: int, packer: "zlib._Compress") -> bytes:
    """The next of the packed file; b"" when only the flush is left."""
    while data := _read(descriptor, PIECE_BYTES):
        if packed := packer.compress(data):
            return packed
    return b""


def _read(descriptor: int, size_bytes: int) -> bytes:
    try:
        return os.read(descriptor, size_bytes)
    except BlockingIOError:
        # Kernel logs and the like: there is nothing more for now, and we will not wait.
        return b""


def _open(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        mode = os.fstat(descriptor).st_mode
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise HttpError(404, f"path '{path}' does not exist") from exc
    except OSError as exc:
        raise http_error_of(exc, f"cannot read {path}") from exc
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    kind = "is a directory" if stat.S_ISDIR(mode) else "is not a regular file"
    raise HttpError(400, f"path '{path}' {kind}")


def _headers(path: str, found: os.stat_result) -> str:
    name = path.rpartition("/")[2]
    kind = _TYPES.get(name.rpartition(".")[2].lower() if "." in name else "", "application/octet-stream")
    modified = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(found.st_mtime))
    return (
        f"Content-Type: {kind}\r\nContent-Disposition: {_disposition(name)}\r\nVary: Accept-Encoding\r\n"
        f"Accept-Ranges: bytes\r\nLast-Modified: {modified}\r\nETag: {_etag(found)}\r\n"
    )


def _disposition(name: str) -> str:
    if all(char in _PLAIN for char in name):
        return f"inline; filename={name}"
    raw = name.encode("utf-8", "surrogateescape")
    escaped = "".join(chr(byte) if chr(byte) in _PLAIN else f"%{byte:02X}" for byte in raw)
    return f"inline; filename*=utf-8''{escaped}"


def _etag(found: os.stat_result) -> str:
    return f'"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"'


def _is_unchanged(headers: dict[str, str], found: os.stat_result) -> bool:
    tags = headers.get("if-none-match")
    if tags is not None:
        return tags.strip() == "*" or _etag(found) in [tag.strip().removeprefix("W/") for tag in tags.split(",")]
    since = headers.get("if-modified-since")
    return since is not None and int(found.st_mtime) <= _date(since)


def _range_holds(headers: dict[str, str], found: os.stat_result) -> bool:
    condition = headers.get("if-range")
    return condition is None or condition == _etag(found)


def _date(text: str) -> int:
    try:
        return timegm(time.strptime(text, "%a, %d %b %Y %H:%M:%S GMT"))
    except ValueError:
        return -1


def _window(wanted: str, size_bytes: int) -> tuple[int, int] | None:
    """First and last byte asked for; None when the header is to be ignored. Raises HttpError 416.

    Several ranges in one request are ignored, as every server may: answering a thousand overlapping ones
    would let a small request ask for a large multiple of the file.
    """
    unit, _, text = wanted.partition("=")
    first, dash, last = text.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not all(_is_number(part) for part in (first, last) if part):
        return None
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size_bytes - int(last)), size_bytes - 1
    else:
        start, end = int(first), min(int(last), size_bytes - 1) if last else size_bytes - 1
        if last and int(last) < start:
            return None
    if start >= size_bytes or start > end:
        raise HttpError(416, f"the range is outside the file's {size_bytes} bytes")
    return start, end


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19


def content_coding(accepted: str, *, is_partial: bool) -> str:
    """ "gzip" or "identity": what to send to a client that accepts `accepted`. Raises HttpError 406.

    Every HTTP library accepts gzip unasked, beside other codings; packing for all of them would make large files ten
    times slower. So gzip is for who names nothing else, as E2B's clients do for gzip=True, or wants no identity.
    """
    weights: dict[str, float] = {}
    for item in accepted.lower().split(","):
        name, _, parameter = item.partition(";")
        if name.strip():
            weights[name.strip()] = _weight(parameter)
    any_weight = weights.get("*")
    gzip = weights.get("gzip", weights.get("x-gzip", any_weight or 0.0))
    identity = weights.get("identity", 1.0 if any_weight is None else any_weight)
    if is_partial or not gzip:
        if not identity:
            raise HttpError(406, "no acceptable content coding: this server sends identity, and gzip for whole files")
        return "identity"
    is_asked_for = all(name in ("gzip", "x-gzip") for name, weight in weights.items() if weight)
    return "gzip" if is_asked_for or not identity else "identity"


def _weight(parameter: str) -> float:
    name, _, value = parameter.replace(" ", "").partition("=")
    try:
        return float(value) if name == "q" else 1.0
    except ValueError:
        return 1.0
