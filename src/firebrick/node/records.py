"""One small file per machine: what a restarted node agent must know to adopt it or to clean up behind it.

    starting ──▶ warm ──▶ starting ──▶ running ⇄ paused ──▶ ending ──▶ (removed)
        └──────────────────────────────▲ └──▶ kept ◀──┘        ▲
                                               └───────────────┘
A record is written before the effect that would leak without it. A machine whose record says `starting` was
never promised to anyone, so recovery ends it; `warm`, `running` and `paused` (frozen, with its memory) are adopted;
`ending` is ended again. Of a `kept` one only its files count, the disk and maybe the memory: a machine that still
runs is ended. A paused one that
no longer runs becomes kept.

Writes are atomic against a crash of this process (write aside, then rename). Those of what outlives the host's boot,
paused and kept, are flushed to the disk too; what other records describe dies with the boot, so surviving a power cut
would only describe ghosts. An unreadable record means the same as `ending`.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from firebrick.model.errors import Internal
from firebrick.model.ids import BuildId, MachineId, SandboxId, is_machine_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.node.drivers import WarmKey

_RECORD = "record.json"


class MachineState(StrEnum):
    STARTING = "starting"
    WARM = "warm"
    RUNNING = "running"
    PAUSED = "paused"
    KEPT = "kept"
    ENDING = "ending"

    @property
    def is_adopted(self) -> bool:
        """Whether a restart keeps a machine in this state, if it still runs."""
        return self in (MachineState.WARM, MachineState.RUNNING, MachineState.PAUSED)

    @property
    def outlives_boot(self) -> bool:
        return self in (MachineState.PAUSED, MachineState.KEPT)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """`sandbox_id` None: nobody's yet. `slot_index` None: it had not got one.

    `kept_memory`: its last resume found its processes. `paused_at`: since when it is paused or kept; `is_killed`: then
    it is in the grace bin. `is_silent`: then its guest agent did not answer. `is_clean`: kept, and its disk was
    unmounted in order. `is_held`: paused, and its processes stood still before it was frozen. `has_memory`: kept, and
    its memory lies beside the record and takes `memory_bytes`; `disk_stamp`: of the disk that belongs to it.
    """

    machine_id: MachineId
    build_id: BuildId
    runtime: RuntimeName
    limits: Limits
    state: MachineState
    control_token: str = field(repr=False)
    sandbox_id: SandboxId | None = None
    slot_index: int | None = None
    started_at: datetime | None = None
    from_warm: bool = False
    kept_memory: bool = False
    paused_at: datetime | None = None
    is_killed: bool = False
    is_clean: bool = False
    is_silent: bool = False
    is_held: bool = False
    has_memory: bool = False
    memory_bytes: int = 0
    disk_stamp: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecords:
    """What lies on the disk. `unreadable` are machines of which only the id is known."""

    readable: tuple[MachineRecord, ...]
    unreadable: tuple[MachineId, ...]


def key_of(record: MachineRecord) -> WarmKey:
    """Which kind of machine it is."""
    return WarmKey(build_id=record.build_id, runtime=record.runtime, limits=record.limits)


class MachineRecords:
    """The directory of machines. Small synchronous file operations: they stay in the page cache."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def directory(self, machine_id: MachineId) -> Path:
        return self._root / machine_id

    def write(self, record: MachineRecord) -> None:
        """Create or replace. Raises Internal when the disk refuses."""
        directory = self.directory(record.machine_id)
        fresh = directory / f"{_RECORD}.new"
        try:
            # Runtimes enter it as other users, but only this process may read what lies in it.
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            # NOTE: tokens are inside, so the file is private from its first byte.
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(encode_record(record))
                if record.state.outlives_boot:
                    file.flush()
                    os.fsync(file.fileno())
            fresh.rename(directory / _RECORD)
            if record.state.outlives_boot:
                flush_directory(directory)
        except OSError as exc:
            raise Internal(f"The record of machine {record.machine_id} could not be written.", detail=str(exc)) from exc

    def remove(self, machine_id: MachineId) -> None:
        """Remove the machine's directory and all in it. Idempotent."""
        # NOTE: the record goes last, so that a crash in between leaves a directory that recovery recognises.
        directory = self.directory(machine_id)
        try:
            for entry in directory.iterdir():
                if entry.name == _RECORD:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise Internal(f"The directory of machine {machine_id} could not be removed.", detail=str(exc)) from exc

    def load_all(self) -> StoredRecords:
        """Read every record. What is not named like a machine is not ours and stays."""
        readable: list[MachineRecord] = []
        unreadable: list[MachineId] = []
        names = sorted(entry.name for entry in self._root.iterdir()) if self._root.is_dir() else []
        for machine_id in (MachineId(name) for name in names if is_machine_id(name)):
            try:
                record = decode_record((self.directory(machine_id) / _RECORD).read_text())
                if record.machine_id != machine_id:
                    raise ValueError("the record is another machine's")
                readable.append(record)
            except (OSError, ValueError, KeyError, TypeError):
                unreadable.append(machine_id)
        return StoredRecords(readable=tuple(readable), unreadable=tuple(unreadable))


def flush_directory(directory: Path) -> None:
    """Make what was renamed or made in it survive a power cut. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def encode_record(record: MachineRecord) -> str:
    limits = record.limits
    return json.dumps(
        {
            "machine_id": record.machine_id,
            "build_id": record.build_id,
            "runtime": record.runtime,
            "limits": {
                "millicpu": limits.millicpu,
                "memory_mib": limits.memory_mib,
                "disk_mib": limits.disk_mib,
                "process_count": limits.process_count,
            },
            "state": record.state,
            "control_token": record.control_token,
            "sandbox_id": record.sandbox_id,
            "slot_index": record.slot_index,
            "started_at_us": None if record.started_at is None else to_us(record.started_at),
            "from_warm": record.from_warm,
            "kept_memory": record.kept_memory,
            "paused_at_us": None if record.paused_at is None else to_us(record.paused_at),
            "is_killed": record.is_killed,
            "is_clean": record.is_clean,
            "is_silent": record.is_silent,
            "is_held": record.is_held,
            "has_memory": record.has_memory,
            "memory_bytes": record.memory_bytes,
            "disk_stamp": record.disk_stamp,
        }
    )


def decode_record(text: str) -> MachineRecord:
    """Raises ValueError, KeyError or TypeError for anything but a whole record."""
    raw: dict[str, Any] = json.loads(text)
    started_at_us = raw["started_at_us"]
    # What came later than the first release's records: one that an older agent wrote lacks it.
    paused_at_us = raw.get("paused_at_us")
    return MachineRecord(
        machine_id=raw["machine_id"],
        build_id=raw["build_id"],
        runtime=RuntimeName(raw["runtime"]),
        limits=Limits(**raw["limits"]),
        state=MachineState(raw["state"]),
        control_token=raw["control_token"],
        sandbox_id=raw["sandbox_id"],
        slot_index=raw["slot_index"],
        started_at=None if started_at_us is None else from_us(started_at_us),
        from_warm=raw["from_warm"],
        kept_memory=raw.get("kept_memory", False),
        paused_at=None if paused_at_us is None else from_us(paused_at_us),
        is_killed=raw.get("is_killed", False),
        is_clean=raw.get("is_clean", False),
        is_silent=raw.get("is_silent", False),
        is_held=raw.get("is_held", False),
        has_memory=raw.get("has_memory", False),
        memory_bytes=raw.get("memory_bytes", 0),
        disk_stamp=raw.get("disk_stamp", ""),
    )


def to_us(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_us(count: int) -> datetime:
    seconds, microseconds = divmod(count, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)
