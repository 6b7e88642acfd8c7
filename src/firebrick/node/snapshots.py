"""Snapshots on this node: disk, and memory where there is one, of a sandbox at one moment, from which others start.

    making/<id>/ ── rename ──▶ disks/<id>/ {snapshot.json, disk, memory/} ── behind the answer ──▶ chunks + manifest
                                   └── unused for an hour: the files go; chunks bring them back when they are wanted

All that start from a memory map the same files, which nobody writes to. A snapshot is answered for when its files lie
flushed on this node, and is called stored when its manifest is written. Forks are made from the local file and never
wait for chunks. What a rename has not finished is removed by `open`, which also goes on with what was not stored yet.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from firebrick.blobs.base import BlobMissing
from firebrick.blobs.chunks import ChunkStore
from firebrick.blobs.local import LocalBlobs
from firebrick.blobs.manifest import DamagedBlob, data_bytes
from firebrick.blobs.moving import parts_of, write_files
from firebrick.linux.space import is_out_of_space
from firebrick.log import get_log
from firebrick.model.errors import DiskFull, FirebrickError, Internal, Invalid, MemoryRefused, NotFound
from firebrick.model.ids import BuildId, SnapshotId, is_snapshot_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.node.capacity import has_room, read_facts
from firebrick.node.drivers import NodeDrivers
from firebrick.node.machine import DiskSource
from firebrick.node.records import MachineRecord, flush_directory
from firebrick.node.saved_memory import SavedMemory, keeper_of, memory_bytes, memory_of
from firebrick.node.snapshot_arrival import arriving
from firebrick.node.snapshot_records import MemoryOrigin, SnapshotRecord, decode_record, encode_record, write_record
from firebrick.node.task_owner import TaskOwner
from firebrick.rpc.node_api import ImportedSnapshot, ImportSnapshot, NodeSnapshot, StartSandbox
from firebrick.runtimes.base import Capability

STORE_DELAY_S = 3.0
"""A fork deletes its private snapshot when its last sandbox runs; storing that would be work for nothing."""

RETRY_S = 60.0
LOOK_S = 300.0
MIB = 1 << 20
LOCAL_FOR = timedelta(hours=1)

log = get_log("node")


class Snapshots:
    """All of one node. `open` first, `close` last. `patience`: what the wait before storing is multiplied by."""

    def __init__(self, node_dir: Path, drivers: NodeDrivers, *, patience: float = 1.0) -> None:
        self._root = node_dir / "snapshots"
        self._drivers = drivers
        self._store_delay_s = STORE_DELAY_S * patience
        self._blobs = LocalBlobs(node_dir / "blobs")
        self._chunks = ChunkStore(self._blobs, drivers.clock)
        self._records: dict[SnapshotId, SnapshotRecord] = {}
        self._used_at: dict[SnapshotId, datetime] = {}
        self._locks: dict[SnapshotId, asyncio.Lock] = {}
        self._work = TaskOwner()

    async def open(self) -> None:
        """Take up what an earlier process left."""
        await self._blobs.open()
        await asyncio.to_thread(self._load)
        for record in self._records.values():
            self._used_at[record.snapshot_id] = self._drivers.clock.now()
            if record.stored_bytes is None:
                self._store_behind(record.snapshot_id)
        self._work.start(self._tidy(), name="tidy snapshots")

    async def close(self) -> None:
        """What is not stored yet goes on with the next process."""
        await self._work.close()

    def list(self) -> tuple[NodeSnapshot, ...]:
        return tuple(_described(record) for record in self._records.values())

    async def make(
        self, snapshot_id: SnapshotId, machine: MachineRecord, capture: Callable[[Path], Awaitable[bool]]
    ) -> NodeSnapshot:
        """Make it, or answer the one that is there. `capture` writes `disk` and maybe `memory/` into a new directory,
        and tells whether it wrote memory.

        Raises: DiskFull — the disk is full; whatever `capture` raises. Then nothing of it is left.
        """
        origin = MemoryOrigin(
            sandbox_id=machine.sandbox_id, control_token=machine.control_token, limits=machine.limits
        )  # fmt: skip

        async def whose(place: Path) -> MemoryOrigin | None:
            return origin if await capture(place) else None

        draft = self._draft(snapshot_id, machine.build_id, machine.runtime, machine.limits)
        return _described(await self._make(draft, whose))

    async def take_in(self, wanted: ImportSnapshot, parts: AsyncIterator[bytes]) -> ImportedSnapshot:
        """Make it of what another node gave, or answer the one that is there. Raises: see `NodeClient`."""
        self._drivers.images.image(wanted.build_id)

        async def receive(place: Path) -> MemoryOrigin | None:
            manifest, origin = arriving(await anext(parts, b""), wanted)
            _check_room(place, data_bytes(manifest))
            await write_files(manifest, parts, place)
            return origin

        draft = self._draft(wanted.snapshot_id, wanted.build_id, wanted.runtime, wanted.limits)
        record = await self._make(draft, receive)
        why = "" if record.memory is None else await self._memory_refusal(record, wanted.limits)
        return ImportedSnapshot(snapshot=_described(record), memory_refusal=why)

    async def give(self, snapshot_id: SnapshotId) -> AsyncIterator[bytes]:
        """What `take_in` of another node takes. Raises: see `NodeClient`."""
        async with self._lock(snapshot_id):
            if (record := self._records.get(snapshot_id)) is None:
                raise NotFound(f"The snapshot {snapshot_id} is not on this node.")
            if record.stored_bytes is None:
                await self._store_now(record)
        try:
            async for part in parts_of(self._chunks, snapshot_id):
                yield part
        except (BlobMissing, DamagedBlob) as exc:
            if snapshot_id in self._records:
                raise
            raise NotFound(f"The snapshot {snapshot_id} was deleted meanwhile.") from exc

    def _draft(
        self, snapshot_id: SnapshotId, build_id: BuildId, runtime: RuntimeName, limits: Limits
    ) -> SnapshotRecord:  # fmt: skip
        """Before anything is known of its files."""
        now = self._drivers.clock.now()
        return SnapshotRecord(
            snapshot_id=snapshot_id, build_id=build_id, runtime=runtime, disk_mib=limits.disk_mib, disk_bytes=0,
            created_at=now,
        )  # fmt: skip

    async def _make(
        self, draft: SnapshotRecord, fill: Callable[[Path], Awaitable[MemoryOrigin | None]]
    ) -> SnapshotRecord:  # fmt: skip
        """`fill` writes its files and tells whose memory is among them."""
        snapshot_id = draft.snapshot_id
        async with self._lock(snapshot_id):
            if (known := self._records.get(snapshot_id)) is not None:
                return known
            place = self._root / "making" / snapshot_id
            try:
                await asyncio.to_thread(_fresh, place)
                origin = await fill(place)
                # NOTE: a memory remembers its disk as it is: mended, it would be another.
                if origin is None and not self._writes_inside(draft.runtime):
                    await self._drivers.rootfs.mend(place / "disk")
                disk_bytes = (place / "disk").stat().st_blocks * 512 + memory_bytes(place)
                record = replace(draft, disk_bytes=disk_bytes, memory=origin)
                await asyncio.to_thread(self._commit, place, record)
            except BaseException as exc:
                await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
                if is_out_of_space(exc):
                    raise DiskFull(
                        f"The disk of this node is full, so the snapshot {snapshot_id} was not taken; the sandbox is "
                        "as it was. Free space there, then try again."
                    ) from exc
                if isinstance(exc, OSError):
                    raise Internal(f"The snapshot {snapshot_id} could not be written.", detail=str(exc)) from exc
                raise
            self._records[snapshot_id] = record
            self._used_at[snapshot_id] = record.created_at
        self._store_behind(snapshot_id)
        return record

    async def start_from(self, snapshot_id: SnapshotId, request: StartSandbox) -> tuple[StartSandbox, DiskSource]:
        """What a machine begins with to start as this snapshot, and the request that fits it.

        Raises: NotFound; Invalid — another runtime was asked for; MemoryRefused — its memory is wanted, and nothing
        goes on from it here; DamagedBlob — it cannot be read any more.
        """
        record = self._records.get(snapshot_id)
        if record is None:
            raise NotFound(f"The snapshot {snapshot_id} is not on this node.")
        if request.runtime not in (None, record.runtime):
            raise Invalid(
                f"The snapshot was made on the runtime '{record.runtime}' and does not start on '{request.runtime}'."
            )
        async with self._lock(snapshot_id):
            self._used_at[snapshot_id] = self._drivers.clock.now()
            await self._bring_back(record)
        # NOTE: under a memory its disk does not grow.
        is_fixed = record.memory is not None and request.keep_memory
        disk_mib = record.disk_mib if is_fixed else max(record.disk_mib, request.limits.disk_mib)
        limits = replace(request.limits, disk_mib=disk_mib)
        request = replace(request, build_id=record.build_id, runtime=record.runtime, limits=limits)
        disk = self._disk(snapshot_id)
        if record.memory is None:
            return request, DiskSource(path=disk)
        if not request.keep_memory:
            return request, DiskSource(path=disk, is_clean=False)
        if why := await self._memory_refusal(record, limits):
            raise MemoryRefused(why)
        memory = SavedMemory(
            directory=memory_of(disk.parent),
            control_token=record.memory.control_token,
            sandbox_id=record.memory.sandbox_id,
        )
        return request, DiskSource(path=disk, memory=memory)

    async def _memory_refusal(self, record: SnapshotRecord, limits: Limits) -> str:
        """Why a sandbox with these limits starts from the disk only; "": it goes on from the memory."""
        keeper = keeper_of(self._drivers.runtimes[record.runtime])
        if keeper is None or record.memory is None:
            return f"The runtime '{record.runtime}' does not go on from saved memory here."
        if record.memory.limits != limits:
            return "The snapshot's memory was saved under other limits of CPU, memory or processes."
        return await keeper.memory_refusal(memory_of(self._disk(record.snapshot_id).parent))

    async def delete(self, snapshot_id: SnapshotId) -> bool:
        """False when it is not here. Raises FirebrickError; then it may be repeated."""
        async with self._lock(snapshot_id):
            if snapshot_id not in self._records:
                return False
            # NOTE: the manifest first: without it and with the record it is stored again, the other way round it
            # would be nobody's.
            await self._chunks.delete(snapshot_id)
            await asyncio.to_thread(shutil.rmtree, self._root / "disks" / snapshot_id)
            del self._records[snapshot_id]
            self._used_at.pop(snapshot_id, None)
        self._locks.pop(snapshot_id, None)
        return True

    def _store_behind(self, snapshot_id: SnapshotId) -> None:
        self._work.start(self._store(snapshot_id), name=f"store snapshot {snapshot_id}")

    async def _store(self, snapshot_id: SnapshotId) -> None:
        """Until it is stored or deleted."""
        pause_s = self._store_delay_s
        while True:
            await self._drivers.clock.sleep(pause_s)
            try:
                async with self._lock(snapshot_id):
                    record = self._records.get(snapshot_id)
                    if record is None or record.stored_bytes is not None:
                        return
                    await self._store_now(record)
                return
            except (FirebrickError, OSError, ExceptionGroup) as exc:
                # It is safe on this disk as it is; a full store may have room later.
                log.warning("snapshot.not_stored", snapshot_id=snapshot_id, reason=repr(exc), retry_s=RETRY_S)
            pause_s = RETRY_S

    async def _store_now(self, record: SnapshotRecord) -> None:
        """Raises BlobsFailed, OSError, Internal."""
        snapshot_id = record.snapshot_id
        about = {"snapshot": json.loads(encode_record(record))}
        files = await asyncio.to_thread(_files_of, self._disk(snapshot_id).parent)
        manifest = await self._chunks.save(snapshot_id, files, about)
        stored = replace(record, stored_bytes=manifest.stored_bytes)
        await asyncio.to_thread(write_record, self._root / "disks" / snapshot_id, stored)
        self._records[snapshot_id] = stored
        log.info("snapshot.stored", snapshot_id=snapshot_id, stored_bytes=manifest.stored_bytes)

    async def _tidy(self) -> None:
        """Now and then: drop local files that nobody needs, and chunks that no snapshot names."""
        while True:
            await self._drivers.clock.sleep(LOOK_S)
            try:
                for snapshot_id, used_at in list(self._used_at.items()):
                    if self._drivers.clock.now() - used_at > LOCAL_FOR:
                        await self._drop_local(snapshot_id)
                freed_bytes = await self._chunks.sweep()
                if freed_bytes:
                    log.info("snapshot.swept", freed_bytes=freed_bytes)
            except (FirebrickError, OSError) as exc:
                log.warning("snapshot.tidy_failed", reason=repr(exc))

    async def _drop_local(self, snapshot_id: SnapshotId) -> None:
        async with self._lock(snapshot_id):
            record = self._records.get(snapshot_id)
            if record is not None and record.stored_bytes is not None:
                disk = self._disk(snapshot_id)
                # NOTE: the disk first, and back last: where it is, all is.
                await asyncio.to_thread(disk.unlink, missing_ok=True)
                await asyncio.to_thread(shutil.rmtree, memory_of(disk.parent), ignore_errors=True)

    async def _bring_back(self, record: SnapshotRecord) -> None:
        disk = self._disk(record.snapshot_id)
        if disk.exists():
            return
        draft, memory = disk.parent / "loading", memory_of(disk.parent)
        for left in (draft, memory):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
        try:
            await self._chunks.load(record.snapshot_id, draft)
        except BlobMissing as exc:
            raise NotFound(f"The snapshot {record.snapshot_id} is not on this node any more.") from exc
        if record.memory is not None:
            memory_of(draft).rename(memory)
        (draft / "disk").rename(disk)
        draft.rmdir()

    def _commit(self, place: Path, record: SnapshotRecord) -> None:
        write_record(place, record)
        place.rename(self._root / "disks" / record.snapshot_id)
        flush_directory(self._root / "disks")

    def _load(self) -> None:
        for name in ("making", "disks"):
            (self._root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in (self._root / "making").iterdir():
            shutil.rmtree(left)
        for directory in (self._root / "disks").iterdir():
            try:
                record = decode_record((directory / "snapshot.json").read_text())
                if not is_snapshot_id(directory.name) or record.snapshot_id != directory.name:
                    raise ValueError("the record is another snapshot's")
                self._records[record.snapshot_id] = record
            except (OSError, ValueError, KeyError, TypeError) as exc:
                # What a deletion left, most likely; it is never removed by guess.
                log.warning("snapshot.unreadable", directory=str(directory), reason=repr(exc))

    def _disk(self, snapshot_id: SnapshotId) -> Path:
        return self._root / "disks" / snapshot_id / "disk"

    def _lock(self, snapshot_id: SnapshotId) -> asyncio.Lock:
        return self._locks.setdefault(snapshot_id, asyncio.Lock())

    def _writes_inside(self, name: RuntimeName) -> bool:
        return Capability.WRITES_INSIDE in self._drivers.runtimes[name].capabilities


def _check_room(place: Path, wanted_bytes: int) -> None:
    """For its files, and for their chunks, which may take as much again. Raises DiskFull."""
    if not has_room(read_facts(place), 2 * (-(-wanted_bytes // MIB))):
        raise DiskFull(
            f"The disk of the node has no room for the {-(-wanted_bytes // MIB)} MiB of this snapshot and as much for "
            "its chunks. Free space there, then try again."
        )


def _described(record: SnapshotRecord) -> NodeSnapshot:
    return NodeSnapshot(
        snapshot_id=record.snapshot_id,
        build_id=record.build_id,
        runtime=record.runtime,
        keeps_memory=record.memory is not None,
        disk_bytes=record.disk_bytes,
        stored_bytes=record.stored_bytes,
        created_at=record.created_at,
    )


def _files_of(directory: Path) -> dict[str, Path]:
    """What is stored of a snapshot, by name."""
    files = {"disk": directory / "disk"}
    if memory_of(directory).is_dir():
        files |= {f"{memory_of(Path()).name}/{file.name}": file for file in memory_of(directory).iterdir()}
    return files


def _fresh(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700, parents=True)
