"""Blobs in a directory: a file per key, written aside and renamed."""

import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from firebrick.blobs.base import BlobInfo, BlobMissing, BlobsFailed
from firebrick.linux.loop import sync_filesystem

_KEY = re.compile(r"[a-z0-9][a-z0-9.-]*(/[a-z0-9][a-z0-9.-]*)*\Z")
_DRAFTS = ".drafts"
Result = TypeVar("Result")


class LocalBlobs:
    """See `BlobStore`. `root` is ours alone, made on first use; drafts that a crash left are removed by `open`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def open(self) -> None:
        """Raises BlobsFailed."""
        await self._do("open", "the store", self._open)

    async def put(self, key: str, data: bytes) -> None:
        await self._do("write", key, lambda: self._put(self._path(key), data))

    async def flush(self) -> None:
        await self._do("flush", "the store", self._flush)

    async def get(self, key: str) -> bytes:
        return await self._do("read", key, self._path(key).read_bytes)

    async def find(self, key: str) -> BlobInfo | None:
        try:
            return await self._do("look for", key, lambda: self._info(self._path(key)))
        except BlobMissing:
            return None

    async def list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        for info in await self._do("list", prefix or "everything", lambda: [*self._walk(prefix)]):
            yield info

    async def delete(self, key: str) -> None:
        await self._do("delete", key, lambda: self._path(key).unlink(missing_ok=True))

    async def _do(self, doing: str, key: str, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.to_thread(work)
        except FileNotFoundError as exc:
            raise BlobMissing(f"There is no blob '{key}'.") from exc
        except OSError as exc:
            raise BlobsFailed(f"Cannot {doing} the blob '{key}': {exc.strerror}.", detail=str(exc)) from exc

    def _path(self, key: str) -> Path:
        # NOTE: keys may come from a manifest, so they are checked before they name a file.
        if not _KEY.match(key):
            raise BlobsFailed(f"'{key}' is not a key.")
        return self._root / key

    def _open(self) -> None:
        (self._root / _DRAFTS).mkdir(mode=0o700, parents=True, exist_ok=True)
        for draft in (self._root / _DRAFTS).iterdir():
            draft.unlink()

    def _put(self, path: Path, data: bytes) -> None:
        draft = self._root / _DRAFTS / secrets.token_hex(8)
        try:
            with draft.open("xb") as file:
                file.write(data)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)

    def _flush(self) -> None:
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(descriptor)
        finally:
            os.close(descriptor)

    def _info(self, path: Path) -> BlobInfo:
        found = path.stat()
        return BlobInfo(
            key=str(path.relative_to(self._root)),
            size_bytes=found.st_size,
            modified_at=datetime.fromtimestamp(found.st_mtime, UTC),
        )

    def _walk(self, prefix: str) -> Iterator[BlobInfo]:
        top = self._root / prefix.rpartition("/")[0]
        for directory, names, files in os.walk(top):
            names[:] = [name for name in names if name != _DRAFTS]
            for name in files:
                path = Path(directory) / name
                if str(path.relative_to(self._root)).startswith(prefix):
                    try:
                        yield self._info(path)
                    except FileNotFoundError:
                        continue
