"""GET and PUT /firebrick/disk: all that this machine has written, packed into one stream, and back.

For runtimes that keep what a machine writes to themselves: nobody outside can copy it. Only the host may ask.

What was written is found without looking at every file. The root is an overlay: whatever is changed below a directory
makes the overlay copy that directory and all above it, and a copy's ctime is the moment it was made. So directories
older than the image lead nowhere, and of files in the others, those on the device that new files get were written. What
was deleted is told by the list of names that each such directory still has.

    record: length of the header (4 bytes) | header, JSON | of a write (kind w, to the file before it) its bytes
"""

import asyncio
import json
import os
import stat
import time
from collections.abc import Iterator
from errno import ENXIO

from firebrick_guest.errors import HttpError
from firebrick_guest.http import PIECE_BYTES, Exchange
from firebrick_guest.quiet import Quiet

END = b'\x00\x00\x00\x0c{"end":true}'
MAX_HEADER_BYTES = 64 * 1024 * 1024
ROOTS = ("/", "/tmp")
NOT_OURS = frozenset(("/proc", "/sys", "/dev", "/.firebrick", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"))
"""What the host mounts into every machine."""

ZEROS = bytes(PIECE_BYTES)
NONSENSE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading an archive that is none may raise."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Header = dict[str, Any]


class DiskRoutes:
    """`base` is where the disk is seen: `/`, but in tests."""

    def __init__(self, quiet: Quiet, base: str = "") -> None:
        self._quiet = quiet
        self._base = base
        # A clock that went back since we started makes times worthless: then every directory is looked at.
        self._offset_s = time.time() - time.monotonic()

    async def export(self, exchange: Exchange) -> None:
        """Raises HttpError 400, 409."""
        self._check_machine()
        try:
            since_s = float(exchange.head.argument("since") or "")
        except ValueError as exc:
            raise HttpError(400, "since must be a time in seconds") from exc
        if time.time() - time.monotonic() < self._offset_s - 1:
            since_s = 0.0
        holds = exchange.head.argument("hold") == "1"
        self._quiet.stop()
        try:
            exchange.begin_stream(200, "Content-Type: application/octet-stream\r\n")
            pieces = pack(self._base, since_s)
            while piece := await asyncio.to_thread(next, pieces, b""):
                exchange.write(piece)
                await exchange.drain()
            exchange.end_stream()
        except BaseException:
            self._quiet.go_on()
            raise
        if holds:
            self._quiet.hold()
        else:
            self._quiet.go_on()

    async def take(self, exchange: Exchange) -> None:
        """Raises HttpError 409, 400 (not what `export` made), 507 and others of the disk."""
        self._check_machine()
        unpacker = Unpacker(self._base)
        try:
            while piece := await exchange.read():
                await asyncio.to_thread(unpacker.feed, bytes(piece))
            await asyncio.to_thread(unpacker.finish)
        except NONSENSE as exc:
            raise HttpError(400, f"the archive makes no sense: {exc}", close=True) from exc
        except OSError as exc:
            raise HttpError(507, f"the archive could not be unpacked: {exc}", close=True) from exc
        exchange.answer(204)

    def _check_machine(self) -> None:
        if os.getpid() != 1 and not self._base:
            # Then this is somebody's computer and no machine of ours.
            raise HttpError(409, "the disk is not the agent's to pack")


def pack(base: str, since_s: float) -> Iterator[bytes]:
    """The stream, in pieces of about PIECE_BYTES, END at its end."""
    ready = bytearray()
    for part in _parts(base, since_s):
        ready += part
        if len(ready) >= PIECE_BYTES:
            yield bytes(ready)
            ready.clear()
    yield bytes(ready) + END


def _parts(base: str, since_s: float) -> Iterator[bytes]:
    seen: dict[tuple[int, int], str] = {}
    for root in ROOTS:
        try:
            device = _device_of_new_files(base + root)
        except OSError:
            continue
        waiting = [root]
        while waiting:
            path = waiting.pop()
            try:
                entries = sorted(os.scandir(base + path), key=lambda entry: entry.name)
                header = _header(base, path, "d")
            except OSError:
                continue
            header["n"] = [entry.name for entry in entries]
            yield _encode(header)
            for entry in entries:
                inside = f"{path.rstrip('/')}/{entry.name}"
                if inside in NOT_OURS or inside in ROOTS:
                    continue
                try:
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        if found.st_ctime >= since_s:
                            waiting.append(inside)
                    elif found.st_dev == device:
                        yield from _file(base, inside, found, seen)
                except OSError:
                    # Gone, or one that this kernel cannot read: the image's, then, and still named above.
                    continue


def _file(base: str, path: str, found: os.stat_result, seen: dict[tuple[int, int], str]) -> Iterator[bytes]:
    identity = (found.st_dev, found.st_ino)
    if found.st_nlink > 1 and identity in seen:
        yield _encode({"p": path, "k": "h", "to": seen[identity]})
        return
    if stat.S_ISREG(found.st_mode):
        descriptor = os.open(base + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            yield _encode({**_header(base, path, "f"), "s": size})
            yield from _data(descriptor, size)
        finally:
            os.close(descriptor)
    elif stat.S_ISLNK(found.st_mode):
        yield _encode({**_header(base, path, "l"), "to": os.readlink(base + path)})
    elif stat.S_ISFIFO(found.st_mode):
        yield _encode(_header(base, path, "p"))
    else:
        return
    seen[identity] = path


def _header(base: str, path: str, kind: str) -> "Header":
    found = os.lstat(base + path)
    header: Header = {"p": path, "k": kind, "m": stat.S_IMODE(found.st_mode), "u": found.st_uid, "g": found.st_gid}
    header["t"] = found.st_mtime_ns
    try:
        names = os.listxattr(base + path, follow_symlinks=False)
        values = {name: os.getxattr(base + path, name, follow_symlinks=False).hex() for name in names}
    except OSError:
        values = {}
    if values:
        header["x"] = values
    return header


def _data(descriptor: int, size: int) -> Iterator[bytes]:
    """A record for each piece that holds something else than zeros: not every kernel tells of holes."""
    position = _next_data(descriptor, 0, size)
    while position < size:
        piece = os.pread(descriptor, min(PIECE_BYTES, size - position), position)
        if not piece:
            return
        if piece != ZEROS[: len(piece)]:
            yield _encode({"k": "w", "o": position, "l": len(piece)})
            yield piece
        position = _next_data(descriptor, position + len(piece), size)


def _next_data(descriptor: int, position: int, size: int) -> int:
    try:
        return max(position, os.lseek(descriptor, position, os.SEEK_DATA))
    except OSError as exc:
        return size if exc.errno == ENXIO else position


def _device_of_new_files(directory: str) -> int:
    path = f"{directory.rstrip('/')}/.firebrick-{os.urandom(8).hex()}"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        return os.lstat(path).st_dev
    finally:
        os.close(descriptor)
        os.unlink(path)


def _encode(header: "Header") -> bytes:
    # ASCII only: names that are not UTF-8 are lone surrogates here, and come back as they were.
    raw = json.dumps(header, separators=(",", ":")).encode("ascii")
    return len(raw).to_bytes(4, "big") + raw


class Unpacker:
    """Takes the stream in any pieces; what it describes is in place after `finish`."""

    def __init__(self, base: str = "") -> None:
        self._base = base
        self._buffer = bytearray()
        self._descriptor = -1
        self._header: Header = {}
        self._left = self._position = 0
        self._times: list[tuple[str, int]] = []
        self._is_ended = False

    def feed(self, piece: bytes) -> None:
        """Raises one of NONSENSE, OSError."""
        self._buffer += piece
        while self._step():
            pass

    def finish(self) -> None:
        """Raises ValueError: it is not whole. OSError."""
        if not self._is_ended or self._left:
            raise ValueError("it is not whole")
        # From the innermost out, for to set a time in a directory changes none of its own.
        for path, mtime_ns in reversed(self._times):
            os.utime(path, ns=(mtime_ns, mtime_ns))

    def _step(self) -> bool:
        if self._left:
            return self._write()
        if len(self._buffer) < 4:
            return False
        length = int.from_bytes(self._buffer[:4], "big")
        if length > MAX_HEADER_BYTES:
            raise ValueError("a header is too long")
        if len(self._buffer) < 4 + length:
            return False
        header = json.loads(bytes(self._buffer[4 : 4 + length]))
        del self._buffer[: 4 + length]
        self._apply(header)
        return True

    def _apply(self, header: "Header") -> None:
        if header.get("k") == "w":
            self._position, self._left = header["o"], header["l"]
            if self._left <= 0 or self._position < 0:
                raise ValueError("a write of nothing")
            return
        self._close()
        if "end" in header:
            self._is_ended = True
            return
        path = self._base + header["p"]
        kind = header["k"]
        if kind == "d":
            self._directory(path, header)
            return
        if os.path.lexists(path):
            _remove(path)
        if kind == "f":
            self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            self._header = header
            os.ftruncate(self._descriptor, header["s"])
        elif kind == "l":
            os.symlink(header["to"], path)
            os.lchown(path, header["u"], header["g"])
            os.utime(path, ns=(header["t"], header["t"]), follow_symlinks=False)
        elif kind == "h":
            os.link(self._base + header["to"], path, follow_symlinks=False)
        elif kind == "p":
            os.mkfifo(path)
            _dress(path, header)
            os.utime(path, ns=(header["t"], header["t"]))
        else:
            raise ValueError(f"unknown kind {kind!r}")

    def _directory(self, path: str, header: "Header") -> None:
        if not os.path.isdir(path) or os.path.islink(path):
            if os.path.lexists(path):
                _remove(path)
            os.mkdir(path)
        wanted = set(header["n"])
        for name in os.listdir(path):
            inside = f"{path.rstrip('/')}/{name}"
            if name not in wanted and inside.removeprefix(self._base) not in NOT_OURS:
                _remove(inside)
        _dress(path, header)
        self._times.append((path, header["t"]))

    def _write(self) -> bool:
        piece = bytes(self._buffer[: self._left])
        if not piece:
            return False
        if self._descriptor < 0:
            raise ValueError("a write without a file")
        os.pwrite(self._descriptor, piece, self._position)
        del self._buffer[: len(piece)]
        self._position += len(piece)
        self._left -= len(piece)
        return True

    def _close(self) -> None:
        """Finish the file whose writes have come."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            _dress(descriptor, self._header)
            os.utime(descriptor, ns=(self._header["t"], self._header["t"]))
        finally:
            os.close(descriptor)


def _dress(target: str | int, header: "Header") -> None:
    """Owner, mode, attributes. NOTE: in this order, for a new owner takes the setuid bit away."""
    os.chown(target, header["u"], header["g"])
    os.chmod(target, header["m"])
    for name, value in (header.get("x") or {}).items():
        try:
            os.setxattr(target, name, bytes.fromhex(value))
        except OSError:
            continue  # one that this kernel does not keep


def _remove(path: str) -> None:
    """A file or a whole tree; links are not followed."""
    if not os.path.isdir(path) or os.path.islink(path):
        os.unlink(path)
        return
    for name in os.listdir(path):
        _remove(f"{path}/{name}")
    os.rmdir(path)
