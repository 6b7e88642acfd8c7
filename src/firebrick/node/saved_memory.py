"""The memory of a machine that is gone, as files beside its record: `memory/` is whole and flushed, or not there.

    frozen machine ── save ──▶ memory.new/ ── rename ──▶ memory/ ── record: kept, has_memory ──▶ machine ended

Until the record says so, the frozen machine is what counts; from then on memory and disk are, and a machine that still
runs is ended. They belong together: a guest goes on writing to its disk what its memory remembers, so memory counts
only as long as nobody else wrote to that disk, which `disk_stamp` tells.
"""

import asyncio
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from firebrick.linux.loop import copy_file
from firebrick.linux.space import is_out_of_space
from firebrick.log import get_log
from firebrick.model.errors import DiskFull, Internal
from firebrick.model.ids import SandboxId
from firebrick.node.capacity import has_room, read_facts
from firebrick.node.drivers import NodeDrivers
from firebrick.node.records import MachineRecord, MachineRecords, MachineState, flush_directory
from firebrick.runtimes.base import Capability, MemoryKeeper, Runtime

log = get_log("node")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedMemory:
    """`control_token`: of the guest agent in it. `sandbox_id`: whose it was; None: nobody's yet, a template's."""

    directory: Path
    control_token: str
    sandbox_id: SandboxId | None


def memory_of(directory: Path) -> Path:
    """Where it lies in a machine's or a snapshot's directory."""
    return directory / "memory"


def keeper_of(runtime: Runtime) -> MemoryKeeper | None:
    """None: machines of this runtime keep their memory in place or not at all."""
    return cast(MemoryKeeper, runtime) if Capability.KEEPS_MEMORY in runtime.capabilities else None


async def store_memory(drivers: NodeDrivers, records: MachineRecords, record: MachineRecord) -> MachineRecord:
    """Save the memory of a frozen machine whose processes are held; what its record says now. It stays frozen, and is
    to be ended. Raises DiskFull, FirebrickError; then it is as it was."""
    keeper = keeper_of(drivers.runtimes[record.runtime])
    assert keeper is not None
    directory = records.directory(record.machine_id)
    draft = directory / "memory.new"
    check_room(directory, record)
    try:
        await asyncio.to_thread(drop_memory, directory)
        draft.mkdir(mode=0o700)
        await keeper.save_memory(record.machine_id, draft)
        stamp = drivers.rootfs.stamp(record.machine_id)
        await asyncio.to_thread(_put_in_place, draft, memory_of(directory))
    except BaseException as exc:
        await asyncio.to_thread(drop_memory, directory)
        if is_out_of_space(exc):
            raise DiskFull(f"The disk is full, so the memory of machine {record.machine_id} was not saved.") from exc
        if isinstance(exc, OSError):
            raise Internal(f"The memory of machine {record.machine_id} was not saved.", detail=str(exc)) from exc
        raise
    size_bytes = memory_bytes(directory)
    kept = replace(record, state=MachineState.KEPT, has_memory=True, memory_bytes=size_bytes, disk_stamp=stamp)
    # NOTE: whatever becomes of this write, the files stay: it may have got as far as to promise them. The next save
    # removes them, and so does recovery.
    records.write(kept)
    log.info("machine.memory_saved", machine_id=record.machine_id, memory_bytes=size_bytes)
    return kept


def check_room(directory: Path, record: MachineRecord) -> None:
    """Raises DiskFull: a machine's memory, should it have written to all of it, would take the disk's reserve."""
    if not has_room(read_facts(directory), record.limits.memory_mib):
        raise DiskFull(
            "The disk of this node is nearly full; it saves no memory until space is freed there.",
            detail=f"machine {record.machine_id}, up to {record.limits.memory_mib} MiB",
        )


def drop_memory(directory: Path) -> None:
    """Idempotent."""
    for place in (directory / "memory.new", memory_of(directory)):
        shutil.rmtree(place, ignore_errors=True)


def memory_bytes(directory: Path) -> int:
    """What it takes on the disk; 0 when there is none."""
    try:
        return sum(file.stat().st_blocks * 512 for file in memory_of(directory).iterdir())
    except OSError:
        return 0


def share_memory(source: Path, target: Path) -> None:
    """The same files under a second name, for nobody ever writes to them. Raises OSError."""
    memory_of(target).mkdir(mode=0o700)
    for file in memory_of(source).iterdir():
        try:
            os.link(file, memory_of(target) / file.name)
        except OSError:
            copy_file(file, memory_of(target) / file.name)
    flush_directory(memory_of(target))


async def refusal_of(
    drivers: NodeDrivers, record: MachineRecord, directory: Path, *, stamp: str
) -> str:  # fmt: skip
    """Why a kept machine cannot go on from its memory, as a sentence; "": it can. `stamp`: of its disk now."""
    keeper = keeper_of(drivers.runtimes[record.runtime])
    if keeper is None:
        return f"The runtime '{record.runtime}' does not go on from saved memory here."
    if not memory_of(directory).is_dir():
        return "Its memory is no longer there."
    if record.disk_stamp != stamp:
        return "Its disk was written to after its memory was saved."
    return await keeper.memory_refusal(memory_of(directory))


def _put_in_place(draft: Path, place: Path) -> None:
    draft.rename(place)
    flush_directory(place.parent)
