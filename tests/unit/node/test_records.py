"""Machine records: what a restart reads."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.model.errors import Internal
from firebrick.model.ids import BuildId, MachineId, new_machine_id, new_sandbox_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.node.records import (
    MachineRecord,
    MachineRecords,
    MachineState,
    StoredRecords,
    decode_record,
    encode_record,
    from_us,
    to_us,
)
from firebrick.node.recovery import decide_recovery

LIMITS = Limits(millicpu=1000, memory_mib=512, disk_mib=1024, process_count=100)


def make_record(**changes: object) -> MachineRecord:
    values: dict[str, object] = {
        "machine_id": new_machine_id(),
        "build_id": BuildId("b"),
        "runtime": RuntimeName.GVISOR,
        "limits": LIMITS,
        "state": MachineState.RUNNING,
        "control_token": "t0ken",
        "sandbox_id": new_sandbox_id(),
        "slot_index": 3,
        "started_at": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    }
    return MachineRecord(**(values | changes))  # type: ignore[arg-type]


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Every field, to the microsecond; and only its owner can read it."""
    records = MachineRecords(tmp_path / "machines")
    first, second = make_record(), make_record(sandbox_id=None, slot_index=None, started_at=None, from_warm=True)
    for record in (first, second):
        records.write(record)
    assert set(records.load_all().readable) == {first, second}
    assert (records.directory(first.machine_id) / "record.json").stat().st_mode & 0o777 == 0o600


def test_a_token_is_not_shown() -> None:
    """A record may be logged."""
    assert "t0ken" not in repr(make_record())


def test_removing_is_repeatable_and_takes_everything(tmp_path: Path) -> None:
    """Also what a runtime left in the machine's directory; links are removed, not followed."""
    records = MachineRecords(tmp_path / "machines")
    record = make_record()
    records.write(record)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    deep = records.directory(record.machine_id) / "runtime" / "deep"
    deep.mkdir(parents=True)
    (deep / "link").symlink_to(outside)
    (records.directory(record.machine_id) / "link").symlink_to(outside)
    records.remove(record.machine_id)
    records.remove(record.machine_id)
    assert list((tmp_path / "machines").iterdir()) == []
    assert (outside / "kept").exists()


def test_a_disk_that_refuses_is_our_error(tmp_path: Path) -> None:
    """Not an OSError."""
    (tmp_path / "machines").write_text("a file where the directory should be")
    with pytest.raises(Internal, match="record"):
        MachineRecords(tmp_path / "machines").write(make_record())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"machine_id": 1}', "\x00" * 100])
def test_a_broken_record_is_only_an_id(tmp_path: Path, text: str) -> None:
    """Half a file, another shape: the machine is known, nothing else is believed."""
    records = MachineRecords(tmp_path)
    record = make_record()
    records.write(record)
    (records.directory(record.machine_id) / "record.json").write_text(text)
    stored = records.load_all()
    assert (stored.readable, stored.unreadable) == ((), (record.machine_id,))


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC)))
def test_times_are_exact_to_the_microsecond(moment: datetime) -> None:
    """There and back is the same moment."""
    assert from_us(to_us(moment)) == moment
    assert decode_record(encode_record(make_record(started_at=moment))).started_at == moment


def test_what_is_known_of_saved_memory_comes_back() -> None:
    """Whether it was held, has memory and which disk belongs to that; an older agent's record knows of none."""
    record = make_record(is_held=True, has_memory=True, disk_stamp="7.8.9")
    assert decode_record(encode_record(record)) == record
    raw = json.loads(encode_record(record))
    for name in ("is_held", "has_memory", "disk_stamp"):
        del raw[name]
    assert decode_record(json.dumps(raw)) == replace(record, is_held=False, has_memory=False, disk_stamp="")


STATES = st.sampled_from(list(MachineState))
RECORDS = st.lists(
    st.builds(
        make_record,
        machine_id=st.integers(0, 5).map(lambda number: MachineId(f"m{number:019}")),
        state=STATES,
        slot_index=st.one_of(st.none(), st.integers(0, 3)),
        sandbox_id=st.sampled_from([None, "i1", "i2", "i3"]),
        runtime=st.sampled_from([RuntimeName.GVISOR, RuntimeName.CONTAINER]),
    ),
    max_size=6,
    unique_by=lambda record: record.machine_id,
)


@given(
    records=RECORDS,
    running=st.dictionaries(
        st.integers(0, 8).map(lambda number: MachineId(f"m{number:019}")),
        st.sampled_from([RuntimeName.GVISOR, RuntimeName.CONTAINER]),
    ),
)
def test_recovery_adopts_what_was_promised_and_runs_and_ends_all_else(
    records: list[MachineRecord], running: dict[MachineId, RuntimeName]
) -> None:
    """No machine is forgotten, none is both kept and ended, and no two that are kept share slot or sandbox."""

    unreadable = (MachineId(f"m{9:019}"),)
    plan = decide_recovery(StoredRecords(readable=tuple(records), unreadable=unreadable), running)
    adopted = {record.machine_id for record in plan.adopt}
    known = {record.machine_id for record in records} | set(running) | set(unreadable)
    assert adopted | set(plan.end) == known
    assert not adopted & set(plan.end)
    assert all(record.state.is_adopted and running[record.machine_id] is record.runtime for record in plan.adopt)
    slots = [record.slot_index for record in plan.adopt]
    assert None not in slots
    assert len(slots) == len(set(slots))
    owners = [record.sandbox_id for record in plan.adopt if record.sandbox_id]
    assert len(owners) == len(set(owners))
