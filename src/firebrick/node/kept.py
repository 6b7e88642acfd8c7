"""Sandboxes of which only the disk is here: paused without memory, or killed and in the grace bin.

Each is a machine's record in state `kept`, and the file that its driver or its guest agent left.
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
        return (sandbox for record in records if (sandbox := sandbox_of(record)) is not None)

    def source(self, record: MachineRecord) -> DiskSource:
        """What a new machine begins with to become this sandbox again."""
        if self._writes_inside(record.runtime):
            return DiskSource(path=archive_of(self._records.directory(record.machine_id)))
        disk = self._drivers.rootfs.disk(record.machine_id)
        return DiskSource(path=disk, shares=True, is_clean=record.is_clean)

    async def capture(self, record: MachineRecord, target: Path) -> None:
        """Copy its disk to a new file, flushed. Raises FirebrickError, OSError; then `target` is not there."""
        if self._writes_inside(record.runtime):
            await asyncio.to_thread(copy_file, self.source(record).path, target)
        else:
            await self._drivers.rootfs.capture(record.machine_id, target)

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

    def disk_bytes(self, record: MachineRecord) -> int:
        """What its disk takes on this computer's; 0 when that cannot be told."""
        try:
            return self.source(record).path.stat().st_blocks * 512
        except OSError:
            return 0

    def _writes_inside(self, name: RuntimeName) -> bool:
        runtime = self._drivers.runtimes.get(name)
        return runtime is not None and Capability.WRITES_INSIDE in runtime.capabilities
