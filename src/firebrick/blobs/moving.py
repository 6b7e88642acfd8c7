"""A manifest and its chunks as parts of a stream, from which another node makes the same files.

    part 1: the manifest as it is stored    then: every different chunk once, packed, in the manifest's order

Whoever takes them in trusts none of it: all sizes are known and bounded before a byte is written, every chunk is proven
by its sum, and what is cut off or goes on behind its end is refused.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from firebrick.blobs.chunks import ChunkStore, proven
from firebrick.blobs.manifest import CUT_OFF, Chunk, Manifest, wanted
from firebrick.model.errors import Invalid


async def parts_of(chunks: ChunkStore, name: str) -> AsyncIterator[bytes]:
    """What `write_files` takes. Raises BlobMissing, DamagedBlob — a chunk is not what it was; then it is cut off."""
    manifest, stored = await chunks.stored(name)
    yield stored
    for chunk in wanted(manifest):
        yield await chunks.packed(manifest, chunk)


async def write_files(manifest: Manifest, parts: AsyncIterator[bytes], directory: Path) -> None:
    """Write the files of a manifest, which `check_shape` has passed, into a directory, from the parts behind it; they
    are flushed when this returns.

    Raises: Invalid — it is cut off, damaged or goes on; OSError. Then what is in the directory is of no use.
    """
    with ExitStack() as stack:
        files = {
            file.name: stack.enter_context(_opened(directory / file.name, file.size_bytes)) for file in manifest.files
        }
        places: dict[str, list[tuple[BinaryIO, int]]] = {}
        for file in manifest.files:
            for chunk in file.chunks:
                places.setdefault(chunk.sha256, []).append((files[file.name], chunk.index * manifest.chunk_bytes))
        for chunk in wanted(manifest):
            packed = await anext(parts, None)
            if packed is None:
                raise Invalid(CUT_OFF)
            await asyncio.to_thread(_write, packed, chunk, places[chunk.sha256])
        if await anext(parts, None) is not None:
            raise Invalid("It goes on behind its end.")
        for opened in files.values():
            await asyncio.to_thread(os.fsync, opened.fileno())


def _opened(path: Path, size_bytes: int) -> BinaryIO:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    file = path.open("xb")
    os.ftruncate(file.fileno(), size_bytes)
    return file


def _write(packed: bytes, chunk: Chunk, places: list[tuple[BinaryIO, int]]) -> None:
    data = proven(packed, chunk)
    if data is None:
        raise Invalid("It is damaged: a chunk is not what its sum says.")
    for file, offset in places:
        written = 0
        while written < len(data):
            written += os.pwrite(file.fileno(), data[written:], offset + written)
