"""Which of the sandbox's limits were reached, and how often: told in the log, in /metrics and where a command ends."""

import os
import time

from firebrick_guest.logs import EventLog

# The kernel's count of processes that it killed for memory, where it shows our control group (v2, v1).
_KILL_COUNTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
# Out of 1000: how much sooner than us the kernel shall kill a command when memory ends. Even a crowd of processes
# that are all smaller than we are must go first.
_EXPENDABLE = 300
_QUIET_S = 1.0
_RECENT_S = 5.0

MEMORY_NOTE = "out of memory: the sandbox's memory limit was reached"


class LimitWatch:
    """`counts` is how often each limit was reached."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._told_at: dict[str, float] = {}
        # Kept open: it is read at every command's start.
        self._kill_count = next((os.open(path, os.O_RDONLY) for path in _KILL_COUNTS if os.path.exists(path)), None)
        self._kernel_kills = self._named_kills = self._read_kernel_kills()
        self._killed_at = 0.0
        self._expendable = _expendable()
        self.counts = {"memory": 0, "processes": 0, "connections": 0, "disk": 0}

    def hit(self, limit: str, **fields: object) -> None:
        """Count it; tell it at most once a second, for a guest at its limits hits them thousands of times."""
        self.counts[limit] += 1
        now = time.monotonic()
        if now - self._told_at.get(limit, -_QUIET_S) >= _QUIET_S:
            self._told_at[limit] = now
            self._log.add("warn", "limit reached", limit=limit, **fields)

    def make_expendable(self, pid: int) -> None:
        """Let the kernel kill this command, and what it will start, before us."""
        if self._expendable is None:
            return
        try:
            descriptor = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY)
        except OSError:
            return  # it has ended already
        try:
            os.write(descriptor, self._expendable)
        except OSError:
            pass  # it has ended meanwhile
        finally:
            os.close(descriptor)

    def memory_kill_count(self) -> int:
        """Processes that were killed for memory so far, by the kernel or by our guard."""
        kills = self._read_kernel_kills()
        if kills > self._kernel_kills:
            self._killed_at = time.monotonic()
        for _ in range(kills - self._kernel_kills):
            self.hit("memory")
        self._kernel_kills = kills
        return self.counts["memory"]

    def note_kill(self, pid: int, name: str) -> None:
        """A child of ours was killed: by the kernel for memory, if that has just killed one that we cannot name yet.
        Not certain, so the host, which knows the victim's name, takes from it the id only."""
        self.memory_kill_count()
        if self._kernel_kills > self._named_kills and time.monotonic() - self._killed_at < _RECENT_S:
            self._log.add("warn", "killed, likely for memory", limit="memory", pid=pid, name=name)
        self._named_kills = self._kernel_kills

    def _read_kernel_kills(self) -> int:
        if self._kill_count is None:
            return 0
        try:
            for line in os.pread(self._kill_count, 4096, 0).splitlines():
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
        except (OSError, ValueError):
            pass
        return 0


def _expendable() -> bytes | None:
    """None where the host has not made us killable ourselves: on somebody's computer, or on gVisor, whose kernel
    never kills for memory."""
    try:
        with open("/proc/self/oom_score_adj", "rb", buffering=0) as file:
            own = int(file.read(16))
    except (OSError, ValueError):
        return None
    return b"%d" % min(1000, own + _EXPENDABLE) if own > 0 else None


def process_count() -> int:
    """Of the whole sandbox, threads not counted."""
    return sum(1 for name in os.listdir("/proc") if name.isdigit()) if os.path.isdir("/proc") else 0


def process_soft_limit(hard: int, count: int) -> int:
    """How many processes a new command may bring its user to, when there are `count` and the sandbox may have
    `hard`; both may be -1, no limit. An eighth is kept for later commands, so that one that forks without end does
    not keep others from starting; when it has come that far, each new command is let into a part of the rest."""
    if hard < 0:
        return hard
    reserve = max(16, hard // 8)
    usual = max(1, hard - reserve)
    if count < usual * 3 // 4:
        return usual
    return min(hard, max(usual, count + max(8, reserve // 4)))
