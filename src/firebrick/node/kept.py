"""Sandboxes of which only files are here: paused, without memory or with it, or killed and in the grace bin.

Each is a machine's record in state `kept`, the file that its driver or its guest agent left, and maybe its memory.
"""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from firebrick.linux.loop import copy_file
from firebrick.model.errors import NotFound
from firebrick.model.ids import SandboxId
from firebrick.model.machine import RuntimeName
from firebrick.node.drivers import NodeDrivers
from firebrick.node.machine import DiskSource, archive_of
from firebrick.node.records import MachineRecord, MachineRecords, MachineState
from firebrick.node.saved_memory import (
    SavedMemory,
    drop_memory,
    memory_bytes,
    memory_of,
    refusal_of,
    share_memory,
)
from firebrick.rpc.node_api import NodeSandbox, NodeSandboxState
from firebrick.runtimes.base import Capability


def sandbox_of(record: MachineRecord, *, address: str = "", keeps_memory: bool = False) -> NodeSandbox | None:
    """A sandbox as the node reports it, from its machine's record. None when the record is nobody's."""
    if record.sandbox_id is None or record.started_at is None:
        return None
    state = NodeSandboxState.KEPT if record.is_killed else NodeSandboxState.PAUSED
    return NodeSandbox(
        sandbox_id=record.sandbox_id,
        machine_id=record.machine_id,
        runtime=record.runtime,
        address=address,
        started_at=record.started_at,
        from_warm=record.from_warm,
        state=NodeSandboxState.RUNNING if record.paused_at is None else state,
        keeps_memory=keeps_memory,
        kept_memory=record.kept_memory,
        paused_at=record.paused_at,
        saved_bytes=record.memory_bytes,
    )


class KeptDisks:
    """By sandbox. Nothing else changes a kept machine's record or file."""

    def __init__(self, drivers: NodeDrivers, records: MachineRecords) -> None:
        self._drivers = drivers
        self._records = records
        self._kept: dict[SandboxId, MachineRecord] = {}

    def add(self, record: MachineRecord) -> None:
        assert record.sandbox_id is not None
        self._kept[record.sandbox_id] = record

    def get(self, sandbox_id: SandboxId) -> MachineRecord | None:
        return self._kept.get(sandbox_id)

    def require(self, sandbox_id: SandboxId) -> MachineRecord:
        """Raises NotFound."""
        record = self._kept.get(sandbox_id)
        if record is None:
            raise NotFound(f"Nothing of the sandbox {sandbox_id} is on this node.")
        return record

    def sandboxes(self) -> Iterator[NodeSandbox]:
        records: Iterable[MachineRecord] = self._kept.values()
        kept = (sandbox_of(record, keeps_memory=record.has_memory) for record in records)
        return (sandbox for sandbox in kept if sandbox is not None)

    async def source(self, record: MachineRecord, *, keep_memory: bool) -> DiskSource:
        """What a new machine begins with to become this sandbox again."""
        if self._writes_inside(record.runtime):
            return DiskSource(path=self._disk(record))
        memory, note = None, ""
        if record.has_memory and keep_memory:
            note = await self._refusal(record)
            memory = self._memory(record) if not note else None
        # NOTE: with memory it is shared only where a stamp tells afterwards whether it was touched: a machine that
        # fails on its way must not leave a disk that its memory knows nothing of.
        shares = memory is None or bool(record.disk_stamp)
        return DiskSource(path=self._disk(record), shares=shares, is_clean=record.is_clean, memory=memory, note=note)

    async def capture(self, record: MachineRecord, place: Path, *, keep_memory: bool) -> bool:
        """Copy its disk to `place/disk`, flushed, and share its memory as `place/memory`, if it has it and that is
        wanted; whether it did. Raises FirebrickError, OSError; then what is in `place` is of no use."""
        if self._writes_inside(record.runtime):
            await asyncio.to_thread(copy_file, self._disk(record), place / "disk")
            return False
        await self._drivers.rootfs.capture(record.machine_id, place / "disk")
        if not (keep_memory and record.has_memory) or await self._refusal(record):
            return False
        await asyncio.to_thread(share_memory, self._records.directory(record.machine_id), place)
        return True

    async def drop_memory(self, record: MachineRecord) -> MachineRecord:
        """Give its memory up; what its record says now. Raises Internal."""
        if not record.has_memory:
            return record
        cold = replace(record, has_memory=False, memory_bytes=0, disk_stamp="")
        self.change(cold)
        await asyncio.to_thread(drop_memory, self._records.directory(record.machine_id))
        return cold

    async def _refusal(self, record: MachineRecord) -> str:
        stamp = self._drivers.rootfs.stamp(record.machine_id)
        return await refusal_of(self._drivers, record, self._records.directory(record.machine_id), stamp=stamp)

    def _memory(self, record: MachineRecord) -> SavedMemory:
        return SavedMemory(
            directory=memory_of(self._records.directory(record.machine_id)),
            control_token=record.control_token,
            sandbox_id=record.sandbox_id,
        )

    def _disk(self, record: MachineRecord) -> Path:
        if self._writes_inside(record.runtime):
            return archive_of(self._records.directory(record.machine_id))
        return self._drivers.rootfs.disk(record.machine_id)

    def change(self, record: MachineRecord) -> None:
        """Write what is known of it anew. Raises Internal."""
        self._records.write(record)
        self.add(record)

    async def remove(self, sandbox_id: SandboxId) -> bool:
        """For good. False when there was nothing. Raises FirebrickError; then it may be repeated."""
        record = self._kept.get(sandbox_id)
        if record is None:
            return False
        await self.forget(record)
        if self._kept.get(sandbox_id) is record:
            del self._kept[sandbox_id]
        return True

    def release(self, sandbox_id: SandboxId) -> MachineRecord | None:
        """Keep it no longer: it runs again. What is left of it is for `forget`; recovery does the same."""
        return self._kept.pop(sandbox_id, None)

    async def forget(self, record: MachineRecord) -> None:
        """Remove the file and the record. Idempotent. Raises FirebrickError."""
        # NOTE: first, or a crash would leave a promise without its disk.
        self._records.write(replace(record, state=MachineState.ENDING))
        await self._drivers.rootfs.remove(record.machine_id)
        await asyncio.to_thread(self._records.remove, record.machine_id)

    async def disk_bytes(self, record: MachineRecord) -> int:
        """What its disk and its saved memory take on this computer's; 0 when that cannot be told."""
        directory = self._records.directory(record.machine_id)
        saved_bytes = await asyncio.to_thread(memory_bytes, directory) if record.has_memory else 0
        if not self._writes_inside(record.runtime):
            return await self._drivers.rootfs.usage_bytes(record.machine_id) + saved_bytes
        try:
            return archive_of(directory).stat().st_blocks * 512 + saved_bytes
        except OSError:
            return saved_bytes

    def _writes_inside(self, name: RuntimeName) -> bool:
        runtime = self._drivers.runtimes.get(name)
        return runtime is not None and Capability.WRITES_INSIDE in runtime.capabilities
