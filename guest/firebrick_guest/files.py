"""GET and POST /files: the contents of files, streamed with flat memory.

Files are written in place, as E2B does: whoever watches a directory counts on the very events that opening,
changing the owner and writing make, so a temporary file and a rename will not do.
"""

import asyncio
import os
import stat
import zlib
from collections.abc import AsyncIterator

from firebrick_guest import metadata
from firebrick_guest.download import send_file
from firebrick_guest.errors import ConnectError, HttpError, http_error_of
from firebrick_guest.http import PIECE_BYTES, Exchange
from firebrick_guest.multipart import MultipartParser, boundary_of
from firebrick_guest.settings import Settings
from firebrick_guest.users import User, make_parents, resolve_path
from firebrick_guest.watching import Watches

# Up to this a write goes to the page cache in the time that handing it to a thread would take.
INLINE_BYTES = 64 * 1024


class Upload:
    """One file that is being written."""

    def __init__(self, path: str, user: User, tags: dict[str, str], watches: Watches) -> None:
        self.path = path
        self._what = f"cannot write {path}"
        self._tags = tags
        self._descriptor = _open_for_writing(path, user, watches)

    async def write(self, data: bytes | bytearray) -> None:
        try:
            if len(data) <= INLINE_BYTES:
                _write_all(self._descriptor, data)
            else:
                await asyncio.to_thread(_write_all, self._descriptor, data)
        except OSError as exc:
            raise http_error_of(exc, self._what) from exc

    def close(self) -> dict[str, object]:
        """Set the metadata; the answer's line for this file."""
        told: dict[str, object] = {"path": self.path, "name": self.path.rpartition("/")[2], "type": "file"}
        try:
            metadata.replace(self._descriptor, self._tags)
            found = metadata.read(self._descriptor)
        except OSError as exc:
            raise http_error_of(exc, self._what) from exc
        finally:
            self.abort()
        if found:
            told["metadata"] = found
        return told

    def abort(self) -> None:
        """Close the file; harmless the second time."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class FileRoutes:
    def __init__(self, settings: Settings, watches: Watches) -> None:
        self._settings = settings
        self._watches = watches

    async def upload(self, exchange: Exchange) -> None:
        head = exchange.head
        user = self._user(exchange)
        # A directory that was made a moment ago is watched before anything is put into it.
        self._watches.catch_up()
        tags = metadata.from_headers(head.headers)
        kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
        exchange.expect_bulk()
        body = _plain_body(exchange)
        if kind == "multipart/form-data":
            told = await self._multipart(exchange, body, user, tags)
        elif kind == "application/octet-stream":
            told = [await self._octets(exchange, body, user, tags)]
        else:
            raise HttpError(400, "the content type must be multipart/form-data or application/octet-stream")
        exchange.answer_json(200, told)

    async def download(self, exchange: Exchange) -> None:
        path = self._resolve(exchange.head.argument("path") or "", self._user(exchange))
        await send_file(exchange, path)

    async def _octets(
        self, exchange: Exchange, body: AsyncIterator[bytes | bytearray], user: User, tags: dict[str, str]
    ) -> dict[str, object]:
        path = exchange.head.argument("path")
        if not path:
            raise HttpError(400, "the query must name the path to write to")
        upload = Upload(self._resolve(path, user), user, tags, self._watches)
        try:
            async for piece in body:
                await upload.write(piece)
            return upload.close()
        finally:
            upload.abort()

    async def _multipart(
        self, exchange: Exchange, body: AsyncIterator[bytes | bytearray], user: User, tags: dict[str, str]
    ) -> list[dict[str, object]]:
        parser = MultipartParser(boundary_of(exchange.head.headers["content-type"]))
        only_path = exchange.head.argument("path")
        told: list[dict[str, object]] = []
        seen: set[str] = set()
        upload: Upload | None = None
        try:
            async for piece in body:
                for event in parser.feed(piece):
                    if isinstance(event, dict):
                        upload = self._begin_part(event, only_path, user, tags, seen)
                    elif upload is None:
                        continue
                    elif event is None:
                        told.append(upload.close())
                        upload = None
                    else:
                        await upload.write(event)
            parser.finish()
        finally:
            if upload:
                upload.abort()
        return told

    def _begin_part(
        self, part: dict[str, str], only_path: str | None, user: User, tags: dict[str, str], seen: set[str]
    ) -> Upload | None:
        if part.get("name") != "file":
            return None
        wanted = only_path or part.get("filename")
        if not wanted:
            raise HttpError(400, "a file part names no file, and the query no path")
        path = self._resolve(wanted, user)
        if path in seen:
            raise HttpError(400, f"you cannot upload multiple files to the same path '{path}' in one request")
        seen.add(path)
        return Upload(path, user, tags, self._watches)

    def _user(self, exchange: Exchange) -> User:
        name = exchange.head.argument("username")
        try:
            return self._settings.user(name)
        except ConnectError as exc:
            raise HttpError(
                401, f"error looking up user '{name or self._settings.default_user}': {exc.message}"
            ) from exc

    def _resolve(self, path: str, user: User) -> str:
        if "\0" in path:
            raise HttpError(400, "a path cannot hold a NUL byte")
        try:
            return resolve_path(path, user, self._settings.default_workdir)
        except ConnectError as exc:
            raise HttpError(400, exc.message) from exc


async def _plain_body(exchange: Exchange) -> AsyncIterator[bytes | bytearray]:
    """The body with its content coding undone, in bounded pieces however well it was packed."""
    coding = exchange.head.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("gzip", "x-gzip", "identity", ""):
        raise HttpError(400, f"unsupported Content-Encoding '{coding}'; supported: gzip, identity")
    if "gzip" not in coding:
        while piece := await exchange.read():
            yield piece
        return
    unpacker = zlib.decompressobj(wbits=31)
    try:
        while piece := await exchange.read():
            while piece:
                yield unpacker.decompress(piece, PIECE_BYTES)
                piece = unpacker.unconsumed_tail
                if unpacker.eof and unpacker.unused_data:
                    # A gzip file may have several members, one behind the other.
                    piece, unpacker = unpacker.unused_data, zlib.decompressobj(wbits=31)
    except zlib.error as exc:
        raise HttpError(400, "the body is not valid gzip") from exc
    if not unpacker.eof:
        raise HttpError(400, "the gzip body ends too early")


def _open_for_writing(path: str, user: User, watches: Watches) -> int:
    what = f"cannot write {path}"
    try:
        found = os.stat(path)
    except FileNotFoundError:
        found = None
    except NotADirectoryError as exc:
        raise HttpError(500, f"path is a file: {path.rpartition('/')[0]}") from exc
    except OSError as exc:
        raise http_error_of(exc, what) from exc
    if found and stat.S_ISDIR(found.st_mode):
        raise HttpError(400, f"path is a directory: {path}")
    if found and not stat.S_ISREG(found.st_mode):
        raise HttpError(400, f"path is not a regular file: {path}")
    try:
        return _create(path, user, watches) if found is None else _reopen(path, user)
    except NotADirectoryError as exc:
        raise HttpError(500, f"path is a file: {exc.filename}") from exc
    except OSError as exc:
        raise http_error_of(exc, what) from exc


def _create(path: str, user: User, watches: Watches) -> int:
    if make_parents(path.rpartition("/")[0], user):
        # Who watches from above shall watch the new directory before the file is in it.
        watches.catch_up()
    descriptor = _open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.fchown(descriptor, user.uid, user.gid)
    return descriptor


def _reopen(path: str, user: User) -> int:
    os.chown(path, user.uid, user.gid)
    descriptor = _open_regular(path, os.O_WRONLY | os.O_CREAT)
    try:
        # Not by O_TRUNC, of which gVisor tells no watcher.
        os.ftruncate(descriptor, 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open_regular(path: str, flags: int) -> int:
    # O_NONBLOCK: between our look and the open somebody may have put a FIFO there, which would block us.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise HttpError(400, f"path is not a regular file: {path}")
    return descriptor


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
