"""What is written down of a snapshot beside its files, as `snapshot.json` and in its manifest."""

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from firebrick.model.ids import BuildId, SandboxId, SnapshotId
from firebrick.model.machine import Limits, RuntimeName
from firebrick.node.records import flush_directory, from_us, to_us


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOrigin:
    """Whose memory a snapshot has: what its guest agent answers to, and the limits that the machine had."""

    sandbox_id: SandboxId | None
    control_token: str = field(repr=False)
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """`disk_bytes`: what all its files hold. `stored_bytes` None: not stored yet. `memory` None: it has only a disk."""

    snapshot_id: SnapshotId
    build_id: BuildId
    runtime: RuntimeName
    disk_mib: int
    disk_bytes: int
    created_at: datetime
    stored_bytes: int | None = None
    memory: MemoryOrigin | None = None


def write_record(directory: Path, record: SnapshotRecord) -> None:
    draft = directory / "snapshot.json.new"
    with draft.open("w") as file:
        file.write(encode_record(record))
        file.flush()
        os.fsync(file.fileno())
    draft.rename(directory / "snapshot.json")
    flush_directory(directory)


def encode_record(record: SnapshotRecord) -> str:
    return json.dumps(
        {
            "snapshot_id": record.snapshot_id,
            "build_id": record.build_id,
            "runtime": record.runtime,
            "disk_mib": record.disk_mib,
            "disk_bytes": record.disk_bytes,
            "created_at_us": to_us(record.created_at),
            "stored_bytes": record.stored_bytes,
            "memory": None if record.memory is None else asdict(record.memory),
        }
    )


def decode_record(text: str) -> SnapshotRecord:
    """Raises ValueError, KeyError or TypeError for anything but a whole record."""
    raw = json.loads(text)
    # An older agent wrote none.
    memory = raw.get("memory")
    return SnapshotRecord(
        snapshot_id=SnapshotId(raw["snapshot_id"]),
        build_id=BuildId(raw["build_id"]),
        runtime=RuntimeName(raw["runtime"]),
        disk_mib=raw["disk_mib"],
        disk_bytes=raw["disk_bytes"],
        created_at=from_us(raw["created_at_us"]),
        stored_bytes=raw["stored_bytes"],
        memory=None if memory is None else MemoryOrigin(**memory | {"limits": Limits(**memory["limits"])}),
    )
