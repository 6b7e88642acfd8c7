"""A snapshot as one file: its format, and who vouches for it. Pure, but for the stream that is read.

    magic │ frame: head │ frame: seal │ frame: manifest │ frame: chunk … │ empty frame      frame = length (u32) + bytes

The head (JSON) has what the control plane keeps of a snapshot, and the manifest's sum; the seal is the head's sum and
its HMAC under the exporting instance's key. The manifest has the sum of every chunk, so that the seal proves all of it.

It matters who made an archive, whole or not: a disk is a filesystem that a host's kernel may mount, and memory is what
a monitor goes on from. A guest can write neither as it likes, whoever makes a file can.
"""

import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from firebrick.blobs.manifest import CUT_OFF, MOST_MANIFEST_BYTES, MOST_PART_BYTES, data_bytes, decode_manifest
from firebrick.model.errors import Invalid
from firebrick.model.ids import BuildId, SandboxId, is_sandbox_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.model.snapshot import Snapshot

MAGIC = b"firebrick-snapshot\n"
VERSION = 1
MOST_HEAD_BYTES = 1 << 16
_SUM_BYTES = 32
_BUILD_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_MOST_OF_A_LIMIT = 1 << 31
_MOST_BYTES = 1 << 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveHead:
    """`name` without the team's namespace, None for an unnamed one. `data_bytes`: what the files hold."""

    name: str | None
    tag: str
    build_id: BuildId
    runtime: RuntimeName
    source_id: SandboxId
    limits: Limits
    keeps_memory: bool
    data_bytes: int
    manifest_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedArchive:
    """`is_sealed`: by an instance with our key. `parts` are the chunks; Invalid when they are cut off."""

    head: ArchiveHead
    is_sealed: bool
    manifest: bytes
    parts: AsyncIterator[bytes]


def head_of(snapshot: Snapshot, manifest: bytes) -> ArchiveHead:
    """What is said of a snapshot whose node stores it under that manifest. Raises DamagedBlob."""
    assert snapshot.runtime is not None
    return ArchiveHead(
        name=None if snapshot.name is None else snapshot.name.rpartition("/")[2],
        tag=snapshot.tag,
        build_id=snapshot.build_id,
        runtime=snapshot.runtime,
        source_id=snapshot.source_id,
        limits=snapshot.limits,
        keeps_memory=snapshot.keeps_memory,
        data_bytes=data_bytes(decode_manifest(snapshot.snapshot_id, manifest)),
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
    )


def encode_head(head: ArchiveHead) -> bytes:
    return json.dumps({"version": VERSION, **asdict(head)}).encode()


def decode_head(data: bytes) -> ArchiveHead:
    """Raises Invalid: it is none, or of another version."""
    try:
        raw = json.loads(data)
        version = raw.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise Invalid("It is damaged: its head cannot be read.") from exc
    if version != VERSION:
        raise Invalid("It was written by another version of Firebrick, whose format this one does not read.")
    try:
        return _head(raw)
    except (ValueError, KeyError, TypeError) as exc:
        raise Invalid("It is damaged: its head cannot be read.", detail=repr(exc)) from exc


def _head(raw: dict[str, Any]) -> ArchiveHead:
    """Raises ValueError, KeyError, TypeError."""
    limits = raw.pop("limits")
    head = ArchiveHead(
        **raw | {"runtime": RuntimeName(raw["runtime"]), "limits": Limits(**limits)}
    )  # fmt: skip
    texts = (head.tag, head.build_id, head.source_id, head.manifest_sha256, "" if head.name is None else head.name)
    counts = asdict(head.limits).values()
    if not all(isinstance(text, str) for text in texts) or not isinstance(head.keeps_memory, bool):
        raise TypeError("a value of another type")
    if not all(type(count) is int and 0 < count < _MOST_OF_A_LIMIT for count in counts):
        raise ValueError("a limit that is none")
    if type(head.data_bytes) is not int or not 0 <= head.data_bytes < _MOST_BYTES:
        raise ValueError("a size that is none")
    if not _BUILD_ID.match(head.build_id) or not is_sandbox_id(head.source_id):
        raise ValueError("an id that is none")
    return head


def seal_of(head: bytes, key: bytes) -> bytes:
    """The sum of a head, and who vouches for it."""
    return hashlib.sha256(head).digest() + hmac.new(key, b"snapshot\0" + head, hashlib.sha256).digest()


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


async def write_archive(
    snapshot: Snapshot, parts: AsyncIterator[bytes], key: bytes
) -> AsyncIterator[bytes]:  # fmt: skip
    """The archive, piece by piece, of what the snapshot's node gives. Raises DamagedBlob and what `parts` raises; then
    it is cut off."""
    manifest = await anext(parts, b"")
    head = encode_head(head_of(snapshot, manifest))
    yield b"".join((MAGIC, frame(head), frame(seal_of(head, key)), frame(manifest)))
    async for part in parts:
        yield frame(part)
    yield frame(b"")


async def open_archive(stream: AsyncIterator[bytes], key: bytes) -> OpenedArchive:
    """Read what comes before the chunks. Raises Invalid and what `stream` raises."""
    reader = _Reader(stream)
    if await reader.take(len(MAGIC)) != MAGIC:
        raise Invalid("It is not a snapshot that Firebrick exported.")
    head = await reader.frame(MOST_HEAD_BYTES)
    seal, expected = await reader.frame(2 * _SUM_BYTES), seal_of(head, key)
    if seal[:_SUM_BYTES] != expected[:_SUM_BYTES]:
        raise Invalid("It is damaged: its head is not what its sum says.")
    decoded = decode_head(head)
    manifest = await reader.frame(MOST_MANIFEST_BYTES)
    if hashlib.sha256(manifest).hexdigest() != decoded.manifest_sha256:
        raise Invalid("It is damaged: its list of chunks is not what its head says.")
    return OpenedArchive(
        head=decoded, is_sealed=hmac.compare_digest(seal, expected), manifest=manifest, parts=_chunks(reader)
    )


async def _chunks(reader: "_Reader") -> AsyncIterator[bytes]:
    while data := await reader.frame(MOST_PART_BYTES):
        yield data
    if not await reader.is_at_end():
        raise Invalid("It goes on behind its end.")


class _Reader:
    """Frames out of pieces of any size; never more than one frame and one piece in memory."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._held = bytearray()

    async def frame(self, most_bytes: int) -> bytes:
        size_bytes = int.from_bytes(await self.take(4), "big")
        if size_bytes > most_bytes:
            raise Invalid("It is damaged: a part of it is longer than any that we write.")
        return await self.take(size_bytes)

    async def take(self, size_bytes: int) -> bytes:
        """Raises Invalid: there is not so much any more."""
        while len(self._held) < size_bytes:
            piece = await anext(self._stream, None)
            if piece is None:
                raise Invalid(CUT_OFF)
            self._held += piece
        taken = bytes(self._held[:size_bytes])
        del self._held[:size_bytes]
        return taken

    async def is_at_end(self) -> bool:
        while not self._held:
            piece = await anext(self._stream, None)
            if piece is None:
                return True
            self._held += piece
        return False
