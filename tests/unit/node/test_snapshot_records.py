"""What is written down of a snapshot comes back, also what an older node agent wrote."""

import json
from datetime import UTC, datetime

import pytest

from firebrick.model.ids import BuildId, SandboxId, SnapshotId
from firebrick.model.machine import Limits, RuntimeName
from firebrick.node.snapshot_records import MemoryOrigin, SnapshotRecord, decode_record, encode_record

LIMITS = Limits(millicpu=2000, memory_mib=512, disk_mib=1024, process_count=100)
ORIGIN = MemoryOrigin(sandbox_id=SandboxId("i1"), control_token="secret", limits=LIMITS)


def record(memory: MemoryOrigin | None) -> SnapshotRecord:
    return SnapshotRecord(
        snapshot_id=SnapshotId("s1"),
        build_id=BuildId("b1"),
        runtime=RuntimeName.SIM,
        disk_mib=1024,
        disk_bytes=4096,
        created_at=datetime(2026, 11, 24, 22, 1, 2, 345678, UTC),
        memory=memory,
    )


@pytest.mark.parametrize("memory", [None, ORIGIN])
def test_a_record_comes_back(memory: MemoryOrigin | None) -> None:
    """Whole, with and without memory; the token is shown nowhere."""
    written = record(memory)
    assert decode_record(encode_record(written)) == written
    assert "secret" not in repr(written)


def test_a_record_of_an_older_agent_has_a_disk_only() -> None:
    """It knew of no memory."""
    raw = json.loads(encode_record(record(None)))
    del raw["memory"]
    assert decode_record(json.dumps(raw)) == record(None)


@pytest.mark.parametrize("memory", [7, {}, {"sandbox_id": "i1", "control_token": "t", "limits": {}}])
def test_half_a_record_is_none(memory: object) -> None:
    """It is refused with an error that the reader of records handles."""
    raw = json.loads(encode_record(record(None))) | {"memory": memory}
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode_record(json.dumps(raw))
