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


def test_ended_logs_are_kept_and_pruned(tmp_path: Path) -> None:
    """The newest ones, for a day; an unknown sandbox has none."""
    logs = EndedLogs(tmp_path, SystemClock())
    logs.save(SandboxId("iold"), [entry(1)])
    old_s = SystemClock().now().timestamp() - guest_log.ENDED_KEPT_S - 10
    os.utime(tmp_path / "iold.jsonl", (old_s, old_s))
    logs.save(SandboxId("inew"), [entry(2)])
    assert logs.read(SandboxId("inew")) == (entry(2),)
    assert logs.read(SandboxId("iold")) == ()


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
