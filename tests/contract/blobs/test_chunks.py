"""What the chunk store promises over any blob store: whole files, deltas, safe sweeps, damage that is named."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from firebrick.blobs.base import BlobInfo, BlobMissing, BlobsFailed, BlobStore
from firebrick.blobs.chunks import CHUNK_BYTES, ChunkStore
from firebrick.blobs.local import LocalBlobs
from firebrick.blobs.manifest import DamagedBlob
from tests.support.manual_clock import ManualClock

HOUR = timedelta(hours=1)


class BlobsInMemory:
    """A store without files, renames or fsync: what S3 promises."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.blobs: dict[str, tuple[bytes, datetime]] = {}
        self.refuses_manifests = False

    async def put(self, key: str, data: bytes) -> None:
        if self.refuses_manifests and key.startswith("manifests/"):
            raise BlobsFailed("told to fail")
        self.blobs[key] = (data, self._clock.now())

    async def flush(self) -> None:
        await asyncio.sleep(0)

    async def get(self, key: str) -> bytes:
        if key not in self.blobs:
            raise BlobMissing(key)
        return self.blobs[key][0]

    async def find(self, key: str) -> BlobInfo | None:
        found = self.blobs.get(key)
        return None if found is None else BlobInfo(key=key, size_bytes=len(found[0]), modified_at=found[1])

    async def list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        await asyncio.sleep(0)
        for key in [key for key in self.blobs if key.startswith(prefix)]:
            if (info := await self.find(key)) is not None:
                yield info

    async def delete(self, key: str) -> None:
        self.blobs.pop(key, None)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime.now(UTC))


@pytest.fixture(params=["local", "memory"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> BlobStore:
    if request.param == "memory":
        return BlobsInMemory(clock)
    local = LocalBlobs(tmp_path / "blobs")
    await local.open()
    return local


@pytest.fixture
def chunks(blobs: BlobStore, clock: ManualClock) -> ChunkStore:
    return ChunkStore(blobs, clock, grace=HOUR)


def write_sparse(path: Path, size_bytes: int, parts: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)
    return path


async def keys(blobs: BlobStore, prefix: str) -> set[str]:
    return {info.key async for info in blobs.list(prefix)}


async def test_a_blob_is_what_was_put_last(blobs: BlobStore) -> None:
    """Put, replace, find, list by prefix, delete twice; what is missing is told as missing."""
    await blobs.put("a/one", b"1")
    await blobs.put("a/one", b"22")
    await blobs.put("ab/two", b"3")
    await blobs.flush()
    found = await blobs.find("a/one")
    assert (await blobs.get("a/one"), found and found.size_bytes) == (b"22", 2)
    assert (await keys(blobs, "a/"), await keys(blobs, "")) == ({"a/one"}, {"a/one", "ab/two"})
    await blobs.delete("a/one")
    await blobs.delete("a/one")
    assert await blobs.find("a/one") is None
    with pytest.raises(BlobMissing):
        await blobs.get("a/one")


@pytest.mark.parametrize("key", ["../up", "/root", "a//b", "", "A", "a/../b", ".drafts/x"])
async def test_a_key_cannot_leave_its_store(tmp_path: Path, key: str) -> None:
    """A key names a file below the store and nothing else."""
    local = LocalBlobs(tmp_path / "blobs")
    await local.open()
    with pytest.raises(BlobsFailed):
        await local.put(key, b"")


async def test_a_file_comes_back_with_its_holes(chunks: ChunkStore, tmp_path: Path) -> None:
    """Bytes, size and holes; also with data across the borders of chunks, and an end within one."""
    parts = {5 * CHUNK_BYTES - 10: os.urandom(20), 9 * CHUNK_BYTES: b"x" * 4096, 12 * CHUNK_BYTES: os.urandom(777)}
    parts |= {index * CHUNK_BYTES: b"%d" % index for index in range(20, 40)}
    source = write_sparse(tmp_path / "source", 41 * CHUNK_BYTES, parts)
    saved = await chunks.save("one", {"disk": source}, {"of": "me"})
    assert await chunks.load("one", tmp_path / "target") == saved == await chunks.manifest("one")
    assert saved.about == {"of": "me"}
    assert {chunk.index for chunk in saved.chunks} == {4, 5, 9, 12, *range(20, 40)}
    assert (tmp_path / "target" / "disk").read_bytes() == source.read_bytes(), "another file came back"
    # 24 chunks, and what the filesystem needs to find them.
    assert (tmp_path / "target" / "disk").stat().st_blocks * 512 < 25 * CHUNK_BYTES


async def test_a_file_that_was_cut_otherwise_stays_readable(
    chunks: ChunkStore, blobs: BlobStore, clock: ManualClock, tmp_path: Path
) -> None:
    """A manifest says where it was cut, so another release's are read as they are."""
    source = write_sparse(tmp_path / "source", 3 * CHUNK_BYTES, {10: b"x" * 999, 2 * CHUNK_BYTES + 5: os.urandom(777)})
    await ChunkStore(blobs, clock, chunk_bytes=CHUNK_BYTES // 4).save("one", {"disk": source}, {})
    loaded = await chunks.load("one", tmp_path / "target")
    assert [chunk.index for chunk in loaded.chunks] == [0, 8]
    assert (tmp_path / "target" / "disk").read_bytes() == source.read_bytes(), "another file came back"


async def test_files_that_belong_together_come_back_together(
    chunks: ChunkStore, blobs: BlobStore, tmp_path: Path
) -> None:
    """Each under its name; what two of them share is stored once, and what is zero not at all."""
    data = os.urandom(CHUNK_BYTES)
    disk = write_sparse(tmp_path / "disk", 3 * CHUNK_BYTES, {CHUNK_BYTES: data})
    memory = write_sparse(tmp_path / "memory", 9 * CHUNK_BYTES, {0: data, 5 * CHUNK_BYTES: bytes(CHUNK_BYTES)})
    saved = await chunks.save("one", {"disk": disk, "memory/pages": memory}, {})
    assert await chunks.load("one", tmp_path / "target") == saved == await chunks.manifest("one")
    assert (tmp_path / "target" / "disk").read_bytes() == disk.read_bytes(), "another disk came back"
    assert (tmp_path / "target" / "memory" / "pages").read_bytes() == memory.read_bytes(), "another memory came back"
    assert len(await keys(blobs, "chunks/")) == 1


async def test_a_manifest_of_one_file_stays_readable(chunks: ChunkStore, blobs: BlobStore, tmp_path: Path) -> None:
    """As they were written before there could be several: the file is called disk."""
    saved = await chunks.save("one", {"disk": write_sparse(tmp_path / "one", 0, {0: b"data"})}, {"of": "me"})
    (file,) = saved.files
    rest = json.dumps(
        {
            "version": 1, "size_bytes": file.size_bytes, "stored_bytes": saved.stored_bytes,
            "chunk_bytes": saved.chunk_bytes, "about": {"of": "me"},
            "chunks": [[chunk.index, chunk.sha256, chunk.size_bytes] for chunk in file.chunks],
        }
    ).encode()  # fmt: skip
    await blobs.put("manifests/one", hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
    assert await chunks.load("one", tmp_path / "target") == saved


@pytest.mark.parametrize("name", ["../up", "/root", "a/../b", "", "a//b"])
async def test_a_manifest_writes_nothing_elsewhere(chunks: ChunkStore, tmp_path: Path, name: str) -> None:
    """A manifest that came from elsewhere names files below the directory it is loaded to, or is damaged."""
    await chunks.save("one", {name: write_sparse(tmp_path / "one", 0, {0: b"data"})}, {})
    with pytest.raises(DamagedBlob):
        await chunks.load("one", tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_an_empty_file_is_a_file(chunks: ChunkStore, tmp_path: Path) -> None:
    """No bytes, and nothing but a hole."""
    for name, size_bytes in (("none", 0), ("hole", 3 * CHUNK_BYTES)):
        await chunks.save(name, {"disk": write_sparse(tmp_path / name, size_bytes, {})}, {})
        await chunks.load(name, tmp_path / f"{name}-back")
        assert (tmp_path / f"{name}-back" / "disk").stat().st_size == size_bytes


async def test_what_is_there_is_not_stored_again(chunks: ChunkStore, blobs: BlobStore, tmp_path: Path) -> None:
    """A second file costs what differs, whatever it descends from."""
    first, second, third = os.urandom(CHUNK_BYTES), os.urandom(CHUNK_BYTES), os.urandom(CHUNK_BYTES)
    await chunks.save("one", {"disk": write_sparse(tmp_path / "one", 0, {0: first + second})}, {})
    delta = await chunks.save("two", {"disk": write_sparse(tmp_path / "two", 0, {0: second + third})}, {})
    assert CHUNK_BYTES <= delta.stored_bytes < CHUNK_BYTES + 1000
    assert len(await keys(blobs, "chunks/")) == 3
    assert (await chunks.save("three", {"disk": tmp_path / "two"}, {})).stored_bytes == 0


async def test_a_damaged_chunk_is_found_and_named(chunks: ChunkStore, blobs: BlobStore, tmp_path: Path) -> None:
    """Changed, cut off or gone: the read fails with the chunk's name and leaves no half file."""
    data = os.urandom(CHUNK_BYTES)
    saved = await chunks.save("one", {"disk": write_sparse(tmp_path / "one", 0, {0: data})}, {})
    key = saved.chunks[0].key
    good = await blobs.get(key)
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[: len(good) // 2], b"", None):
        if bad is None:
            await blobs.delete(key)
        else:
            await blobs.put(key, bad)
        with pytest.raises(DamagedBlob, match=hashlib.sha256(data).hexdigest()):
            await chunks.load("one", tmp_path / "target")
        assert not (tmp_path / "target").exists()


async def test_a_damaged_manifest_is_found_and_stops_the_sweep(
    chunks: ChunkStore, blobs: BlobStore, clock: ManualClock, tmp_path: Path
) -> None:
    """What it names is not known, so nothing is deleted."""
    await chunks.save("one", {"disk": write_sparse(tmp_path / "one", 0, {0: b"data"})}, {})
    good = await blobs.get("manifests/one")
    await blobs.put("manifests/one", good.replace(b'"chunks": [[0', b'"chunks": [[1'))
    clock.advance(7200)
    for failing in (chunks.manifest("one"), chunks.load("one", tmp_path / "target"), chunks.sweep()):
        with pytest.raises(DamagedBlob, match="'one'"):
            await failing
    assert len(await keys(blobs, "chunks/")) == 1


async def test_a_sweep_takes_what_no_manifest_names(
    chunks: ChunkStore, blobs: BlobStore, clock: ManualClock, tmp_path: Path
) -> None:
    """A shared chunk stays with the last that names it; young ones wait for the end of their grace."""
    shared, own = os.urandom(CHUNK_BYTES), os.urandom(CHUNK_BYTES)
    await chunks.save("one", {"disk": write_sparse(tmp_path / "one", 0, {0: shared + own})}, {})
    await chunks.save("two", {"disk": write_sparse(tmp_path / "two", 0, {0: shared})}, {})
    await chunks.delete("one")
    assert await chunks.sweep() == 0
    clock.advance(7200)
    assert await chunks.sweep() > CHUNK_BYTES // 2
    await chunks.load("two", tmp_path / "back")
    await chunks.delete("two")
    await chunks.sweep()
    assert await keys(blobs, "") == set()


async def test_a_sweep_beside_a_save_takes_nothing_of_it(
    chunks: ChunkStore, blobs: BlobStore, clock: ManualClock, tmp_path: Path
) -> None:
    """Sweeps at every moment of a save that uses old, forgotten chunks again: what is saved can be loaded."""
    source = write_sparse(tmp_path / "one", 0, {0: os.urandom(12 * CHUNK_BYTES)})
    await chunks.save("old", {"disk": source}, {})
    await chunks.delete("old")
    clock.advance(7200)
    saving = asyncio.ensure_future(chunks.save("new", {"disk": source}, {}))
    while not saving.done():
        await chunks.sweep()
    await saving
    await chunks.sweep()
    await chunks.load("new", tmp_path / "back")
    assert (tmp_path / "back" / "disk").read_bytes() == source.read_bytes(), "another file came back"


async def test_a_save_that_fails_leaves_no_manifest(clock: ManualClock, tmp_path: Path) -> None:
    """The manifest is written last; without it nothing is promised, and the sweep takes the rest."""
    blobs = BlobsInMemory(clock)
    chunks = ChunkStore(blobs, clock, grace=HOUR)
    blobs.refuses_manifests = True
    with pytest.raises(BlobsFailed):
        await chunks.save("one", {"disk": write_sparse(tmp_path / "one", 0, {0: b"data"})}, {})
    assert await chunks.names() == []
    clock.advance(7200)
    assert await chunks.sweep() > 0
    assert blobs.blobs == {}


async def test_drafts_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    """What was not renamed was never there."""
    (tmp_path / "blobs" / ".drafts").mkdir(parents=True)
    (tmp_path / "blobs" / ".drafts" / "half").write_bytes(b"x")
    local = LocalBlobs(tmp_path / "blobs")
    await local.open()
    assert await keys(local, "") == set()
    assert list((tmp_path / "blobs" / ".drafts").iterdir()) == []
