"""What a sandbox said: events of its agent and lines of its console, bounded, and kept for a while after its end.

Everything here comes from a guest: it may be long, fast, binary and false. So lines are cut, the ring drops its
oldest, the console is read at a bounded pace, and the files have a greatest size and number.
"""

import asyncio
import json
import os
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from firebrick.clock import Clock
from firebrick.guestlink.base import GuestLogEntry
from firebrick.model.ids import SandboxId
from firebrick.node.records import from_us, to_us
from firebrick.rpc.node_api import LogEntry

RING_ENTRIES = 2_000
RING_BYTES = 512 * 1024
LINE_BYTES = 4_096
CONSOLE_FILE_BYTES = 512 * 1024
"""Two files of this size: the present one and the one before it."""

# 16 KiB every 20 ms: more than any boot prints, and a guest that floods its console costs us under 1 MB/s.
CONSOLE_CHUNK_BYTES = 16 * 1024
CONSOLE_PAUSE_S = 0.02

PIPE_BYTES = 64 * 1024
"""What the kernel lets wait in a pipe."""

PRUNE_EVERY_S = 600.0
DISK_BLOCK_BYTES = 4096
"""What the smallest file takes."""


class LogRing:
    """The newest entries, bounded in number and bytes."""

    def __init__(self) -> None:
        self._entries: deque[LogEntry] = deque()
        self._bytes = 0

    def append(self, entry: LogEntry) -> None:
        self._entries.append(entry)
        self._bytes += _weight(entry)
        while len(self._entries) > RING_ENTRIES or self._bytes > RING_BYTES:
            self._bytes -= _weight(self._entries.popleft())

    def entries(self) -> tuple[LogEntry, ...]:
        """Oldest first: agent and console run side by side, so their order of arrival means little."""
        return tuple(sorted(self._entries, key=lambda entry: entry.timestamp))


def select(entries: Iterable[LogEntry], *, start_ms: int, limit: int) -> tuple[LogEntry, ...]:
    """At most `limit` of sorted `entries`, from `start_ms` on."""
    chosen: list[LogEntry] = []
    for entry in entries:
        if len(chosen) >= limit:
            break
        if to_us(entry.timestamp) >= start_ms * 1000:
            chosen.append(entry)
    return tuple(chosen)


def from_guest(entry: GuestLogEntry) -> LogEntry:
    # A guest may claim any time; one that no calendar holds becomes the oldest.
    timestamp_us = entry.timestamp_us if entry.timestamp_us < 2**52 else 0
    return LogEntry(
        timestamp=from_us(timestamp_us), level=entry.level, message=entry.message, fields=dict(entry.fields)
    )


class Console:
    """Drains a machine's console into its ring and its file, so that an adopting process finds the lines."""

    def __init__(self, fifo: Path, file: Path, ring: LogRing, clock: Clock) -> None:
        self._fifo = fifo
        self._file = file
        self._old = file.with_suffix(".old")
        self._ring = ring
        self._clock = clock
        self._partial = b""

    def restore(self) -> None:
        """Put the lines that an earlier process drained back into the ring."""
        for path in (self._old, self._file):
            for entry in read_log_file(path):
                self._ring.append(entry)

    async def drain(self) -> None:
        """Read until cancelled. Returns when there is no console."""
        try:
            # Read and write: with no writer left, a reader alone would see the end of the file for ever.
            descriptor = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            while True:
                await _readable(descriptor)
                self._take(os.read(descriptor, CONSOLE_CHUNK_BYTES))
                await self._clock.sleep(CONSOLE_PAUSE_S)
        finally:
            os.close(descriptor)

    def note(self, entry: LogEntry) -> None:
        """Add what the host has to say."""
        self._ring.append(entry)
        self._write([entry])

    def drain_rest(self) -> None:
        """Take what the pipe still holds, and the line that was never finished: often it is why a guest ended."""
        try:
            descriptor = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self._take(os.read(descriptor, PIPE_BYTES) + b"\n")
        except BlockingIOError:
            return
        finally:
            os.close(descriptor)

    def _take(self, chunk: bytes) -> None:
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        while len(self._partial) > LINE_BYTES:
            lines.append(self._partial[:LINE_BYTES])
            self._partial = self._partial[LINE_BYTES:]
        entries = [self._entry(line) for line in lines if line.strip()]
        for entry in entries:
            self._ring.append(entry)
        self._write(entries)

    def _entry(self, line: bytes) -> LogEntry:
        text = line[:LINE_BYTES].decode(errors="replace").rstrip("\r")
        return LogEntry(timestamp=self._clock.now(), level="info", message=text, fields={"source": "console"})

    def _write(self, entries: Iterable[LogEntry]) -> None:
        try:
            with self._file.open("a") as file:
                file.writelines(encode_entry(entry) + "\n" for entry in entries)
                size_bytes = file.tell()
            if size_bytes > CONSOLE_FILE_BYTES:
                self._file.rename(self._old)
        except OSError:
            # A full disk costs the copy that a restart would read, never the console itself.
            return


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


class EndedLogs:
    """Logs of sandboxes that have ended, or are at rest without a machine: one file each, kept for `kept_s`, and the
    newest of them up to `most_bytes` in all."""

    def __init__(self, directory: Path, clock: Clock, *, kept_s: float, most_bytes: int) -> None:
        self._directory = directory
        self._clock = clock
        self._kept_s = kept_s
        self._most_bytes = most_bytes
        self._added_bytes = 0
        self._pruned_at_s = -PRUNE_EVERY_S
        self._lock = threading.Lock()

    def save(self, sandbox_id: SandboxId, entries: Iterable[LogEntry]) -> None:
        """Write, after what a former machine of the sandbox left; now and then drop what is too old or too much.
        Blocking: call it in a thread."""
        ring = LogRing()
        for entry in merge(self.read(sandbox_id), entries):
            ring.append(entry)
        text = "".join(encode_entry(entry) + "\n" for entry in ring.entries())
        with self._lock:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._directory / f"{sandbox_id}.new"
            fresh.write_text(text)
            now = self._clock.now().timestamp()
            os.utime(fresh, (now, now))
            fresh.rename(self._path(sandbox_id))
            self._added_bytes += max(len(text), DISK_BLOCK_BYTES)
            now_s = self._clock.monotonic_s()
            # All files are looked at only so often: there may be a hundred thousand.
            if self._added_bytes > self._most_bytes // 64 or now_s - self._pruned_at_s >= PRUNE_EVERY_S:
                self._prune()
                self._added_bytes, self._pruned_at_s = 0, now_s

    def read(self, sandbox_id: SandboxId) -> tuple[LogEntry, ...]:
        """Blocking: call it in a thread."""
        return read_log_file(self._path(sandbox_id))

    def _path(self, sandbox_id: SandboxId) -> Path:
        return self._directory / f"{sandbox_id}.jsonl"

    def _prune(self) -> None:
        oldest = self._clock.now().timestamp() - self._kept_s
        with os.scandir(self._directory) as found:
            seen = [(entry.stat(), entry.path) for entry in found]
        left_bytes = self._most_bytes
        for status, path in sorted(seen, key=lambda item: item[0].st_mtime, reverse=True):
            left_bytes -= max(status.st_size, DISK_BLOCK_BYTES)
            if left_bytes < 0 or status.st_mtime < oldest:
                Path(path).unlink(missing_ok=True)


def merge(earlier: Iterable[LogEntry], later: Iterable[LogEntry]) -> tuple[LogEntry, ...]:
    """By time, each entry once: a log that was saved before its machine was gone is saved again."""
    once = {encode_entry(entry): entry for entry in (*earlier, *later)}
    return tuple(sorted(once.values(), key=lambda entry: entry.timestamp))


def encode_entry(entry: LogEntry) -> str:
    return json.dumps([to_us(entry.timestamp), entry.level, entry.message, dict(entry.fields)])


def read_log_file(path: Path) -> tuple[LogEntry, ...]:
    """Every whole entry of a file that we wrote; a last line that a crash cut off is left out."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    entries: list[LogEntry] = []
    for line in lines:
        try:
            timestamp_us, level, message, fields = json.loads(line)
            entries.append(LogEntry(timestamp=from_us(timestamp_us), level=level, message=message, fields=fields))
        except (ValueError, TypeError):
            continue
    return tuple(entries)


def _weight(entry: LogEntry) -> int:
    return 100 + len(entry.message) + sum(len(key) + len(value) for key, value in entry.fields.items())
