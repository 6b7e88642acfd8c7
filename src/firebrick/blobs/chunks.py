"""Files as content-addressed chunks: `chunks/ab/<sha256>` and, written last, `manifests/<name>`.

A manifest has one file or several that belong together, as a disk and the memory of the same moment. A file is cut at
fixed places, because what is stored are disk images, which change in place; holes and zeros are not stored. A chunk's
name is the checksum of its bytes before zstd, so equal chunks of any two files are one, a delta needs no ancestor, and
what is read is proven. A manifest names its chunks and carries a checksum of itself.

Sweeping is safe beside savers: a chunk that an unfinished save of this process has named is never deleted, nor one that
anybody put within the grace.
"""

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard

from firebrick.blobs.base import BlobMissing, BlobStore
from firebrick.blobs.manifest import (
    CHUNKS,
    Chunk,
    DamagedBlob,
    Manifest,
    StoredFile,
    decode_manifest,
    encode_manifest,
    sum_of,
)
from firebrick.clock import Clock
from firebrick.linux.loop import data_extents

CHUNK_BYTES = 1 << 20
"""Of new files (benchmarks/chunks.py): larger store more of what did not change, smaller cost more keys, and neither is
faster. A manifest says its own, so older ones stay readable when this changes."""

LEVEL = 1
"""zstd's fastest: 490 MB/s of libraries on one core and 13 % larger than level 3, which does 320 MB/s."""

GRACE = timedelta(hours=1)
AT_ONCE_COUNT = 4
"""Chunks in memory and in work at the same time."""

_MANIFESTS = "manifests/"


class ChunkStore:
    def __init__(
        self, blobs: BlobStore, clock: Clock, *, grace: timedelta = GRACE, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self._blobs = blobs
        self._clock = clock
        self._grace = grace
        self._chunk_bytes = chunk_bytes
        self._saves: list[set[str]] = []
        self._sweep_lock = asyncio.Lock()
        self._named_meanwhile: set[str] = set()

    async def save(self, name: str, sources: Mapping[str, Path], about: dict[str, Any]) -> Manifest:
        """Store files, by the names they shall have, that do not change meanwhile; the manifest is there when this
        returns and not before. Repeating it replaces the manifest. Raises BlobsFailed, OSError; then only chunks for
        the sweep are left."""
        named: set[str] = set()
        self._saves.append(named)
        try:
            saved = [await self._save_file(file, source, named) for file, source in sources.items()]
            manifest = Manifest(
                name=name, stored_bytes=sum(added_bytes for _, added_bytes in saved), chunk_bytes=self._chunk_bytes,
                files=tuple(file for file, _ in saved), about=about,
            )  # fmt: skip
            await self._blobs.flush()
            await self._blobs.put(_MANIFESTS + name, encode_manifest(manifest))
            await self._blobs.flush()
        finally:
            self._saves.remove(named)
        return manifest

    async def manifest(self, name: str) -> Manifest:
        """Raises BlobMissing, DamagedBlob, BlobsFailed."""
        return (await self.stored(name))[0]

    async def stored(self, name: str) -> tuple[Manifest, bytes]:
        """A manifest, and the bytes that it is stored as. Raises BlobMissing, DamagedBlob, BlobsFailed."""
        data = await self._blobs.get(_MANIFESTS + name)
        return decode_manifest(name, data), data

    async def packed(self, manifest: Manifest, chunk: Chunk) -> bytes:
        """A chunk as it is stored, proven. Raises DamagedBlob, BlobsFailed."""
        return (await self._read(manifest, chunk))[0]

    async def load(self, name: str, directory: Path) -> Manifest:
        """Write the files into a new directory, with their holes. Raises DamagedBlob, BlobMissing, BlobsFailed,
        OSError; then the directory is not there."""
        manifest = await self.manifest(name)
        directory.mkdir(mode=0o700)
        try:
            for stored in manifest.files:
                (directory / stored.name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                await self._load_file(manifest, stored, directory / stored.name)
        except BaseException as exc:
            await asyncio.to_thread(shutil.rmtree, directory)
            if isinstance(exc, BaseExceptionGroup):
                raise exc.exceptions[0] from exc
            raise
        return manifest

    async def names(self) -> list[str]:
        """Of every manifest. Raises BlobsFailed."""
        return [info.key.removeprefix(_MANIFESTS) async for info in self._blobs.list(_MANIFESTS)]

    async def delete(self, name: str) -> None:
        """Drop the manifest; its chunks go with the next sweep. Idempotent. Raises BlobsFailed."""
        await self._blobs.delete(_MANIFESTS + name)

    async def sweep(self) -> int:
        """Delete chunks that no manifest names; bytes freed. Raises DamagedBlob before anything is deleted when a
        manifest cannot be read: what it names is not known then. BlobsFailed."""
        async with self._sweep_lock:
            self._named_meanwhile = set[str]().union(*self._saves)
            oldest_kept = self._clock.now() - self._grace
            # NOTE: chunks are listed before the manifests are read, so that of a save that ends between, the manifest
            # is seen; and what unfinished ones name is told by them.
            listed = [info async for info in self._blobs.list(CHUNKS) if info.modified_at < oldest_kept]
            marked: set[str] = set()
            for name in await self.names():
                try:
                    marked.update(chunk.key for chunk in (await self.manifest(name)).chunks)
                except BlobMissing:
                    continue  # deleted meanwhile
            freed_bytes = 0
            for info in listed:
                if info.key not in marked and info.key not in self._named_meanwhile:
                    await self._blobs.delete(info.key)
                    freed_bytes += info.size_bytes
            return freed_bytes

    async def _save_file(self, name: str, source: Path, named: set[str]) -> tuple[StoredFile, int]:
        chunks: list[Chunk] = []
        added_bytes = 0
        pieces = _pieces(source, self._chunk_bytes)
        while batch := await asyncio.to_thread(_take, pieces):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._save_chunk(piece, named)) for piece in batch]
            for chunk, size_bytes in (task.result() for task in tasks):
                chunks.append(chunk)
                added_bytes += size_bytes
        return StoredFile(name=name, size_bytes=source.stat().st_size, chunks=tuple(chunks)), added_bytes

    async def _load_file(self, manifest: Manifest, stored: StoredFile, target: Path) -> None:
        with target.open("xb") as file:
            os.ftruncate(file.fileno(), stored.size_bytes)
            for first in range(0, len(stored.chunks), AT_ONCE_COUNT):
                async with asyncio.TaskGroup() as group:
                    for chunk in stored.chunks[first : first + AT_ONCE_COUNT]:
                        group.create_task(self._load_chunk(manifest, chunk, file.fileno()))

    async def _save_chunk(self, piece: tuple[int, bytes], named: set[str]) -> tuple[Chunk, int]:
        index, data = piece
        digest = await asyncio.to_thread(sum_of, data)
        chunk = Chunk(index=index, sha256=digest, size_bytes=len(data))
        # NOTE: named before it is looked for: a sweep that comes between leaves it alone.
        named.add(chunk.key)
        self._named_meanwhile.add(chunk.key)
        found = await self._blobs.find(chunk.key)
        # One that is old may be another process's to sweep; putting it again makes it young.
        if found is not None and self._clock.now() - found.modified_at < self._grace / 2:
            return chunk, 0
        packed = await asyncio.to_thread(_pack, data)
        await self._blobs.put(chunk.key, packed)
        return chunk, len(packed) if found is None else 0

    async def _load_chunk(self, manifest: Manifest, chunk: Chunk, descriptor: int) -> None:
        _, data = await self._read(manifest, chunk)
        await asyncio.to_thread(os.pwrite, descriptor, data, chunk.index * manifest.chunk_bytes)

    async def _read(self, manifest: Manifest, chunk: Chunk) -> tuple[bytes, bytes]:
        """A chunk, packed and unpacked. Raises DamagedBlob, BlobsFailed."""
        try:
            packed = await self._blobs.get(chunk.key)
        except BlobMissing as exc:
            raise DamagedBlob(f"The chunk {chunk.key} of '{manifest.name}' is missing.") from exc
        data = await asyncio.to_thread(proven, packed, chunk)
        if data is None:
            raise DamagedBlob(f"The chunk {chunk.key} of '{manifest.name}' is damaged.")
        return packed, data


def _pieces(source: Path, chunk_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(index, bytes) of each chunk that holds something else than zeros."""
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        done = -1
        for start, end in data_extents(file.fileno(), size):
            for index in range(max(start // chunk_bytes, done + 1), (end - 1) // chunk_bytes + 1):
                done = index
                data = os.pread(file.fileno(), chunk_bytes, index * chunk_bytes)
                if data.strip(b"\0"):
                    yield index, data


def _take(pieces: Iterator[tuple[int, bytes]]) -> Sequence[tuple[int, bytes]]:
    return list(islice(pieces, AT_ONCE_COUNT))


def proven(packed: bytes, chunk: Chunk) -> bytes | None:
    """The bytes of a chunk; None when they are not what its name and size say."""
    data = _unpack(packed, chunk.size_bytes)
    return data if data is not None and len(data) == chunk.size_bytes and sum_of(data) == chunk.sha256 else None


def _pack(data: bytes) -> bytes:
    packed: bytes = zstandard.ZstdCompressor(level=LEVEL).compress(data)
    return packed


def _unpack(packed: bytes, size_bytes: int) -> bytes | None:
    try:
        # NOTE: where a frame tells its size, the library takes that for the bound.
        if zstandard.frame_content_size(packed) not in (-1, size_bytes):
            return None
        data: bytes = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size_bytes)
        return data
    except zstandard.ZstdError:
        return None
