"""Logs of guests: bounded, whatever a guest does."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from firebrick.clock import SystemClock
from firebrick.guestlink.base import GuestLogEntry
from firebrick.model.ids import SandboxId
from firebrick.node import guest_log
from firebrick.node.guest_log import Console, EndedLogs, LogRing, encode_entry, from_guest, read_log_file, select
from firebrick.rpc.node_api import LogEntry
from tests.support.manual_clock import ManualClock
from tests.support.wait import wait_for

START = datetime(2026, 1, 1, tzinfo=UTC)


def entry(number: int, message: str = "x") -> LogEntry:
    return LogEntry(timestamp=START + timedelta(milliseconds=number), level="info", message=message)


def test_the_ring_keeps_the_newest() -> None:
    """By number and by bytes."""
    ring = LogRing()
    for number in range(guest_log.RING_ENTRIES + 10):
        ring.append(entry(number))
    assert len(ring.entries()) == guest_log.RING_ENTRIES
    assert ring.entries()[0] == entry(10)
    for number in range(1000):
        ring.append(entry(number, "y" * 4096))
    assert sum(len(kept.message) for kept in ring.entries()) <= guest_log.RING_BYTES


def test_a_page_begins_at_its_time() -> None:
    """From `start_ms` on, oldest first, at most `limit`."""
    entries = [entry(number) for number in range(10)]
    start_ms = int(START.timestamp() * 1000) + 4
    assert select(entries, start_ms=start_ms, limit=3) == (entry(4), entry(5), entry(6))
    assert select(entries, start_ms=0, limit=0) == ()


def test_an_impossible_time_of_a_guest_breaks_nothing() -> None:
    """It becomes the oldest."""
    wild = GuestLogEntry(seq=1, timestamp_us=2**53 - 1, level="info", message="m", fields={})
    assert from_guest(wild).timestamp == datetime(1970, 1, 1, tzinfo=UTC)


def test_ended_logs_are_kept_by_time(tmp_path: Path) -> None:
    """Each for its time, however many there are; an unknown sandbox has none."""
    clock = ManualClock()
    logs = EndedLogs(tmp_path, clock, kept_s=86_400, most_bytes=1 << 30)
    for number in range(1000):
        logs.save(SandboxId(f"i{number}"), [entry(number)])
    for age_s, is_kept in ((85_000, True), (86_000, False)):
        then_s = clock.now().timestamp() - age_s
        os.utime(tmp_path / "i0.jsonl", (then_s, then_s))
        clock.advance(guest_log.PRUNE_EVERY_S)
        logs.save(SandboxId("inew"), [entry(2)])
        assert bool(logs.read(SandboxId("i0"))) is is_kept
    assert all(logs.read(SandboxId(f"i{number}")) for number in range(1, 1000))
    assert logs.read(SandboxId("inever")) == ()


def test_ended_logs_take_no_more_than_they_may(tmp_path: Path) -> None:
    """Above the bound the oldest go, whatever their age; a small file counts with what it takes on a disk."""
    clock = ManualClock()
    logs = EndedLogs(tmp_path, clock, kept_s=86_400, most_bytes=64 * guest_log.DISK_BLOCK_BYTES)
    for number in range(200):
        logs.save(SandboxId(f"i{number}"), [entry(number)])
        clock.advance(1)
    assert 60 <= len(list(tmp_path.iterdir())) <= 66
    assert not logs.read(SandboxId("i100"))
    assert logs.read(SandboxId("i199"))


def test_a_sandbox_with_two_machines_has_one_log(tmp_path: Path) -> None:
    """What the second says comes after what the first did, and nothing twice when a save is repeated."""
    logs = EndedLogs(tmp_path, ManualClock(), kept_s=86_400, most_bytes=1 << 20)
    for said in ([entry(1), entry(2)], [entry(2), entry(3)], [entry(3)]):
        logs.save(SandboxId("i1"), said)
    assert logs.read(SandboxId("i1")) == (entry(1), entry(2), entry(3))


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    """The whole ones before it are read."""
    path = tmp_path / "log.jsonl"
    path.write_text(encode_entry(entry(1)) + "\n" + encode_entry(entry(2))[:20])
    assert read_log_file(path) == (entry(1),)


async def test_a_console_is_drained_bounded_and_survives_a_restart(tmp_path: Path) -> None:
    """Binary, endless lines and writers that come and go: the machine never blocks, our files stay small."""
    fifo, file = tmp_path / "console", tmp_path / "console.jsonl"
    os.mkfifo(fifo)
    ring = LogRing()
    draining = asyncio.ensure_future(Console(fifo, file, ring, SystemClock()).drain())
    try:
        for chunk in (b"first\n", b"\xff\xfe\x00 binary\n", b"z" * 10_000 + b"\n"):
            await asyncio.to_thread(fifo.write_bytes, chunk)
        await asyncio.to_thread(fifo.write_bytes, b"last\n")
        await wait_for(lambda: "last" in [kept.message for kept in ring.entries()])
    finally:
        draining.cancel()
        await asyncio.wait({draining})
    assert ring.entries()[0].message == "first"
    assert all(len(kept.message) <= guest_log.LINE_BYTES for kept in ring.entries())
    again = LogRing()
    Console(fifo, file, again, SystemClock()).restore()
    assert again.entries() == ring.entries()


async def test_a_flooded_console_fills_no_disk(tmp_path: Path) -> None:
    """Two files of a bounded size, however much is printed."""
    fifo, file = tmp_path / "console", tmp_path / "console.jsonl"
    os.mkfifo(fifo)
    ring = LogRing()

    class NoPause(SystemClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(0)

    draining = asyncio.ensure_future(Console(fifo, file, ring, NoPause()).drain())
    try:
        flood = (b"f" * 1000 + b"\n") * 3000
        await asyncio.to_thread(fifo.write_bytes, flood + b"end\n")
        await wait_for(lambda: ring.entries() and ring.entries()[-1].message == "end")
    finally:
        draining.cancel()
        await asyncio.wait({draining})
    written = sum(path.stat().st_size for path in tmp_path.glob("console.*"))
    assert written < 2 * guest_log.CONSOLE_FILE_BYTES + 4 * guest_log.CONSOLE_CHUNK_BYTES
