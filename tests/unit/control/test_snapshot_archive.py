"""The format of an exported snapshot: what was written is read, and nothing else is."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from firebrick.blobs.manifest import Chunk, Manifest, StoredFile, encode_manifest
from firebrick.control.snapshot_archive import (
    MAGIC,
    ArchiveHead,
    decode_head,
    encode_head,
    frame,
    open_archive,
    seal_of,
    write_archive,
)
from firebrick.model.errors import Invalid
from firebrick.model.ids import BuildId, NodeId, SandboxId, TeamId, new_snapshot_id, new_template_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.model.snapshot import Snapshot, SnapshotState

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
LIMITS = Limits(millicpu=2000, memory_mib=512, disk_mib=1024, process_count=100)
DISK = StoredFile(name="disk", size_bytes=3 << 20, chunks=(Chunk(index=1, sha256="a" * 64, size_bytes=1 << 20),))
MANIFEST = encode_manifest(Manifest(name="x", stored_bytes=5, chunk_bytes=1 << 20, about={}, files=(DISK,)))
PARTS = (MANIFEST, b"chunk one", b"c" * 3000)
SNAPSHOT = Snapshot(
    snapshot_id=new_snapshot_id(), template_id=new_template_id(), team_id=TeamId("team_1"), state=SnapshotState.READY,
    build_id=BuildId("6b1b9c40-0000-4000-8000-000000000000"), source_id=SandboxId("i" + "a" * 20), node_id=NodeId("n"),
    limits=LIMITS, created_at=datetime(2026, 11, 25, tzinfo=UTC), runtime=RuntimeName.CONTAINER, tag="v1",
    name="default/saved", keeps_memory=False,
)  # fmt: skip


async def pieces(data: bytes, sizes: Sequence[int] = (1 << 20,)) -> AsyncIterator[bytes]:
    at = 0
    while at < len(data):
        for size in sizes:
            await asyncio.sleep(0)
            yield data[at : at + size]
            at += size


async def parts_of(parts: Sequence[bytes] = PARTS) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


async def written(snapshot: Snapshot = SNAPSHOT, key: bytes = KEY) -> bytes:
    return b"".join([piece async for piece in write_archive(snapshot, parts_of(), key)])


async def read(data: bytes, *, key: bytes = KEY, sizes: Sequence[int] = (1 << 20,)) -> tuple[Any, list[bytes]]:
    archive = await open_archive(pieces(data, sizes), key)
    return archive, [archive.manifest, *[part async for part in archive.parts]]


@pytest.mark.parametrize("sizes", [(1,), (7, 0, 100), (1 << 20,)])
@pytest.mark.parametrize("name", ["default/saved", None])
async def test_it_comes_back(name: str | None, sizes: Sequence[int]) -> None:
    """Head and parts, in pieces of any size; the team's namespace stays behind."""
    archive, parts = await read(await written(replace(SNAPSHOT, name=name)), sizes=sizes)
    assert archive.is_sealed
    assert parts == list(PARTS)
    assert archive.head == ArchiveHead(
        name=name and "saved", tag="v1", build_id=SNAPSHOT.build_id, runtime=RuntimeName.CONTAINER,
        source_id=SNAPSHOT.source_id, limits=LIMITS, keeps_memory=False, data_bytes=1 << 20,
        manifest_sha256=archive.head.manifest_sha256,
    )  # fmt: skip


async def test_anothers_seal_is_no_damage_but_no_seal() -> None:
    """It is whole, and it is told that nobody we know made it."""
    archive, parts = await read(await written(key=OTHER_KEY))
    assert (archive.is_sealed, parts) == (False, list(PARTS))


async def test_what_is_cut_off_or_goes_on_is_refused() -> None:
    """At every length."""
    whole = await written()
    for size in range(len(whole)):
        with pytest.raises(Invalid):
            await read(whole[:size])
    for more in (b"\0", b"\0\0\0\0", whole):
        with pytest.raises(Invalid, match="behind its end"):
            await read(whole + more)


async def test_a_changed_byte_is_refused_or_breaks_the_seal_or_is_of_a_chunk() -> None:
    """What is not the chunks' own is proven by sums; a seal is ours only where every byte that it proves is."""
    whole = await written()
    seal_at = whole.index(seal_of(encode_head((await read(whole))[0].head), KEY)) + 32
    for at in range(len(whole)):
        changed = whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]
        try:
            archive, parts = await read(changed)
        except Invalid:
            continue
        if seal_at <= at < seal_at + 32:
            assert not archive.is_sealed
        else:
            assert parts[0] == MANIFEST
            assert parts != list(PARTS)


async def test_random_bytes_are_refused() -> None:
    """Whatever they begin with."""
    rng = random.Random(5)
    whole = await written()
    for _ in range(200):
        data = whole[: rng.randrange(len(whole))] + rng.randbytes(rng.randrange(200))
        with pytest.raises(Invalid):
            await read(data)


@pytest.mark.parametrize("size", [(1 << 16) + 1, 0xFFFFFFFF])
async def test_a_long_part_is_refused_before_it_is_read(size: int) -> None:
    """Nothing is held in memory that a length promises."""
    with pytest.raises(Invalid, match="longer than any"):
        await read(MAGIC + size.to_bytes(4, "big") + b"x" * 100)


BAD_HEADS: dict[str, dict[str, Any]] = {
    "version": {"version": 2},
    "more": {"extra": 1},
    "runtime": {"runtime": "nobody"},
    "build": {"build_id": "../../x"},
    "build type": {"build_id": 7},
    "source": {"source_id": "x"},
    "name": {"name": 7},
    "tag": {"tag": None},
    "memory": {"keeps_memory": "yes"},
    "bytes": {"data_bytes": -1},
    "bytes type": {"data_bytes": True},
    "many bytes": {"data_bytes": 1 << 60},
    "limits": {"limits": {}},
    "limits type": {"limits": []},
    "limit": {"limits": {"millicpu": 0, "memory_mib": 1, "disk_mib": 1, "process_count": 1}},
}


@pytest.mark.parametrize("bad", BAD_HEADS)
async def test_a_head_that_lies_is_refused(bad: str) -> None:
    """Whoever makes an archive can make its sums."""
    archive, _ = await read(await written())
    head = json.dumps(json.loads(encode_head(archive.head)) | BAD_HEADS[bad]).encode()
    with pytest.raises(Invalid):
        await read(MAGIC + frame(head) + frame(seal_of(head, KEY)) + frame(MANIFEST) + frame(b""))


@pytest.mark.parametrize("data", [b"", b"[]", b"7", b"{", b"\xff", b"[" * 60_000])
def test_what_is_no_head_is_refused(data: bytes) -> None:
    """Also what JSON cannot take."""
    with pytest.raises(Invalid):
        decode_head(data)
