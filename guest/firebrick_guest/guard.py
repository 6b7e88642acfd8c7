"""Kill what takes too much memory before the machine as a whole is killed for it.

Only where the guest's kernel does not do it: gVisor has no such killer, and when the host's finds the machine's
control group full it ends the sentry, the guest's kernel, and everything with it. So the agent looks, the more often
the less is left, and ends the heaviest process, or the heaviest session when no single process is to blame.
"""

import asyncio
import ctypes
import os
import signal
import struct
import time

from firebrick_guest.limits import LimitWatch

MIB = 1024 * 1024
# What the sentry takes for itself, and for each process of the guest beside the process's own memory.
SENTRY_BYTES = 40 * MIB
PROCESS_BYTES = 400 * 1024
MIN_RESERVE_BYTES = 32 * MIB
# No guest fills its memory faster: the time until the reserve is reached at this rate is how long we may look away.
FILL_BYTES_PER_S = 2048 * MIB
SHORTEST_S, LONGEST_S = 0.02, 1.0
GIVING_BACK_S = 0.2
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_libc = ctypes.CDLL(None, use_errno=True)
_sysinfo_buffer = ctypes.create_string_buffer(128)


class Running:
    """One process of the guest. `memory_bytes` is what ending it gives back."""

    __slots__ = ("memory_bytes", "name", "pid", "session")

    def __init__(self, pid: int, session: int, name: str, memory_bytes: int) -> None:
        self.pid = pid
        self.session = session
        self.name = name
        self.memory_bytes = memory_bytes


def choose(processes: list[Running]) -> tuple[str, list[Running]]:
    """Whom to end: one process when it holds most of the heaviest session's memory, else that whole session."""
    weights: dict[int, int] = {}
    for process in processes:
        weights[process.session] = weights.get(process.session, 0) + process.memory_bytes
    if not weights:
        return "nothing", []
    session = max(weights, key=lambda found: weights[found])
    members = [process for process in processes if process.session == session]
    heaviest = max(members, key=lambda process: process.memory_bytes)
    if heaviest.memory_bytes * 2 > weights[session]:
        return "process", [heaviest]
    return "session", members


def free_bytes(limit_bytes: int, total_bytes: int, inside_free_bytes: int, task_count: int) -> int:
    """What may still be taken: `limit_bytes` is the host's limit for guest and sentry together."""
    overhead_bytes = SENTRY_BYTES + PROCESS_BYTES * task_count
    return inside_free_bytes + min(0, limit_bytes - total_bytes - overhead_bytes)


def reserve_bytes(total_bytes: int) -> int:
    return max(MIN_RESERVE_BYTES, total_bytes // 16)


class MemoryGuard:
    """Looks from `start` to `close`."""

    def __init__(self, limit_bytes: int, limits: LimitWatch) -> None:
        self._limit_bytes = limit_bytes
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at = self._due_at = time.monotonic()
        self._left_bytes = 0
        self._killed_at = -GIVING_BACK_S
        self._killed_left_bytes = 0
        self._ended_session: int | None = None

    def start(self) -> None:
        self._look()

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _look(self) -> None:
        """One system call when all is well: on a machine that is overrun each takes its time."""
        total_bytes, inside_free_bytes, task_count = _sysinfo()
        left_bytes = free_bytes(self._limit_bytes, total_bytes, inside_free_bytes, task_count)
        left_bytes -= reserve_bytes(total_bytes)
        now = time.monotonic()
        if left_bytes < self._margin(now, left_bytes, total_bytes) and self._may_kill(now, left_bytes):
            self._end()
            self._killed_at, self._killed_left_bytes = time.monotonic(), left_bytes
        elif self._ended_session is not None:
            self._end_late_born(now)
        self._looked_at, self._left_bytes = now, left_bytes
        longest_s = LONGEST_S if self._ended_session is None else SHORTEST_S
        delay_s = min(longest_s, max(SHORTEST_S, left_bytes / FILL_BYTES_PER_S))
        self._due_at = now + delay_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _margin(self, now: float, left_bytes: int, total_bytes: int) -> float:
        """What will go, at the present rate, while we are as late again as we were this time."""
        rate = (self._left_bytes - left_bytes) / max(SHORTEST_S, now - self._looked_at)
        return min(total_bytes / 4, max(0.0, rate * (now - self._due_at)))

    def _may_kill(self, now: float, left_bytes: int) -> bool:
        """What was killed gives its memory back a little later; until then only a further loss is a reason."""
        is_losing = left_bytes < self._killed_left_bytes - MIN_RESERVE_BYTES // 2
        return now >= self._killed_at + GIVING_BACK_S or is_losing

    def _end(self) -> None:
        # All stand still while we look around: nothing is taken meanwhile, and we get the processor.
        _signal_all(signal.SIGSTOP)
        try:
            kind, victims = choose(_processes())
            for victim in victims:
                try:
                    os.kill(victim.pid, signal.SIGKILL)
                except OSError:
                    continue
        finally:
            _signal_all(signal.SIGCONT)
        if victims:
            first = victims[0]
            self._ended_session = first.session if kind == "session" else None
            self._limits.hit("memory", ended=kind, pid=first.pid, name=first.name, count=len(victims))

    def _end_late_born(self, now: float) -> None:
        """A process that was just being forked when its session was ended outlives it, and would hold its output open:
        whoever started the session would wait for an end that has been told already."""
        late = [process for process in _processes() if process.session == self._ended_session]
        for process in late:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except OSError:
                continue
        if not late and now >= self._killed_at + GIVING_BACK_S:
            self._ended_session = None


def _sysinfo() -> tuple[int, int, int]:
    """Memory of the machine in bytes, what of it is free, and the number of tasks."""
    _libc.sysinfo(_sysinfo_buffer)
    total, free, tasks = struct.unpack_from("32xQQ32xH", _sysinfo_buffer)
    return total, free, tasks


def _signal_all(number: int) -> None:
    """To every process but us, where all others are the guest's."""
    if os.getpid() == 1:
        try:
            os.kill(-1, number)
        except OSError:
            pass  # there is none


def _processes() -> list[Running]:
    own = os.getpid()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]
    return [found for pid in pids if (found := _running(pid))]


def _running(pid: int) -> Running | None:
    """None: it has ended, or has only its end left to be collected."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            head, _, rest = file.read(1024).rpartition(b")")
        fields = rest.split()
        resident_bytes = int(fields[21]) * PAGE_BYTES
        if fields[0] == b"Z":
            return None
        name = head.partition(b"(")[2].decode("utf-8", "replace")
        return Running(pid, int(fields[3]), name, resident_bytes + PROCESS_BYTES)
    except (OSError, ValueError, IndexError):
        return None
