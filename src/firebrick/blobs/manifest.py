"""What a chunk store knows of files: their chunks, by sums. Pure; a manifest may come from anywhere."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firebrick.model.errors import Internal, Invalid

CHUNK_BOUNDS_BYTES = (1 << 16, 1 << 24)
MOST_MANIFEST_BYTES = 8 << 20
"""Some 90,000 chunks."""

MOST_PART_BYTES = max(CHUNK_BOUNDS_BYTES[1] + (1 << 16), MOST_MANIFEST_BYTES)
"""zstd makes of what it cannot pack at most 0.4 % more."""

CUT_OFF = "It is cut off."

VERSION = 2
FIRST_FILE = "disk"
"""What the only file of a manifest is called that was written before there could be several."""

_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]*(/[a-z0-9_][a-z0-9_.-]*)*\Z")
CHUNKS = "chunks/"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class DamagedBlob(Internal):
    """A chunk or a manifest is missing or not what it was; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """`index`: its place, counted in chunks. `size_bytes`: unpacked."""

    index: int
    sha256: str
    size_bytes: int

    @property
    def key(self) -> str:
        return f"{CHUNKS}{self.sha256[:2]}/{self.sha256}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """`name`: a path relative to where it is loaded; `size_bytes` with holes."""

    name: str
    size_bytes: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`stored_bytes`: what this save added to the store, packed; `chunk_bytes`: where files were cut; `about`: the
    owner's own."""

    name: str
    stored_bytes: int
    chunk_bytes: int
    files: tuple[StoredFile, ...]
    about: dict[str, Any]

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """Of all its files."""
        return tuple(chunk for file in self.files for chunk in file.chunks)


def data_bytes(manifest: Manifest) -> int:
    """What its files take, holes left out."""
    return sum(chunk.size_bytes for chunk in manifest.chunks)


def wanted(manifest: Manifest) -> tuple[Chunk, ...]:
    """Its different chunks, each where it comes first."""
    found: dict[str, Chunk] = {}
    for chunk in manifest.chunks:
        found.setdefault(chunk.sha256, chunk)
    return tuple(found.values())


def check_shape(manifest: Manifest, most_bytes: Mapping[str, int]) -> None:
    """Whether a manifest from elsewhere hangs together and no file is larger than `most_bytes` says of its name.

    Raises: Invalid.
    """
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names) or not set(names) <= set(most_bytes):
        raise Invalid("It names other files than it should have.")
    sizes: dict[str, int] = {}
    for file in manifest.files:
        if not _is_count(file.size_bytes) or file.size_bytes > most_bytes[file.name]:
            raise Invalid(f"Its file '{file.name}' is larger than it may be.")
        _check_chunks(file, manifest.chunk_bytes)
        for chunk in file.chunks:
            if sizes.setdefault(chunk.sha256, chunk.size_bytes) != chunk.size_bytes:
                raise Invalid(f"Its file '{file.name}' names a chunk that has two sizes.")


def _check_chunks(file: StoredFile, chunk_bytes: int) -> None:
    """Each lies in the file, behind the one before it, and has the size that its place leaves. Raises Invalid."""
    last = -1
    for chunk in file.chunks:
        if not _is_count(chunk.index) or chunk.index <= last:
            raise Invalid(f"The chunks of its file '{file.name}' are out of order.")
        last = chunk.index
        left_bytes = file.size_bytes - chunk.index * chunk_bytes
        if not _is_count(chunk.size_bytes) or chunk.size_bytes != min(chunk_bytes, left_bytes):
            raise Invalid(f"A chunk of its file '{file.name}' has another size than its place.")
        if not isinstance(chunk.sha256, str) or not _SHA256.match(chunk.sha256):
            raise Invalid(f"A chunk of its file '{file.name}' has no sum.")


def _is_count(value: object) -> bool:
    # A bool is an int to Python.
    return type(value) is int and value >= 0


def sum_of(data: bytes) -> str:
    """The name of these bytes."""
    return hashlib.sha256(data).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """A line with the checksum of the rest, and the rest as JSON."""
    rest = json.dumps(
        {
            "version": VERSION,
            "stored_bytes": manifest.stored_bytes,
            "chunk_bytes": manifest.chunk_bytes,
            "files": [
                {
                    "name": file.name,
                    "size_bytes": file.size_bytes,
                    "chunks": [[chunk.index, chunk.sha256, chunk.size_bytes] for chunk in file.chunks],
                }
                for file in manifest.files
            ],
            "about": manifest.about,
        }
    ).encode()
    return sum_of(rest).encode() + b"\n" + rest


def decode_manifest(name: str, data: bytes) -> Manifest:
    """Raises DamagedBlob."""
    checksum, _, rest = data.partition(b"\n")
    try:
        raw = json.loads(rest) if sum_of(rest).encode() == checksum else None
        least, most = CHUNK_BOUNDS_BYTES
        if raw is None or raw["version"] not in (1, VERSION) or not least <= raw["chunk_bytes"] <= most:
            raise ValueError("not a manifest of this version")
        files = raw["files"] if raw["version"] == VERSION else [raw | {"name": FIRST_FILE}]
        return Manifest(
            name=name, stored_bytes=raw["stored_bytes"], chunk_bytes=raw["chunk_bytes"],
            files=tuple(_stored_file(file) for file in files), about=raw["about"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise DamagedBlob(f"The manifest of '{name}' is damaged.", detail=str(exc)) from exc


def _stored_file(raw: dict[str, Any]) -> StoredFile:
    """Raises ValueError, KeyError, TypeError."""
    # It becomes a path, and a manifest may come from elsewhere.
    if not _NAME.match(raw["name"]):
        raise ValueError("a file's name is no path below a directory")
    chunks = tuple(Chunk(index=index, sha256=sha, size_bytes=size) for index, sha, size in raw["chunks"])
    return StoredFile(name=raw["name"], size_bytes=raw["size_bytes"], chunks=chunks)
