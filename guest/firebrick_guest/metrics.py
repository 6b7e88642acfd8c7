"""GET /metrics: the machine's load as seen from inside."""

import os
import resource
import time

from firebrick_guest.limits import LimitWatch, process_count

MIB = 1024 * 1024
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Metrics:
    """CPU is the share used since the last reading, or since our start."""

    def __init__(self, limits: LimitWatch, proc: str = "/proc") -> None:
        self._limits = limits
        self._proc = proc
        self._last = self._cpu_ticks()

    def read(self) -> dict[str, object]:
        memory = self._memory()
        disk = os.statvfs("/")
        now = self._cpu_ticks()
        busy, total = (after - before for after, before in zip(now, self._last, strict=True))
        self._last = now
        return {
            "ts": int(time.time()),
            "cpu_count": os.cpu_count() or 1,
            "cpu_used_pct": round(min(100.0, max(0.0, 100.0 * busy / total)), 2) if total > 0 else 0.0,
            **memory,
            "mem_total_mib": memory["mem_total"] // MIB,
            "mem_used_mib": memory["mem_used"] // MIB,
            "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            "disk_total": disk.f_blocks * disk.f_frsize,
            "process_count": process_count(),
            "process_limit": resource.getrlimit(resource.RLIMIT_NPROC)[1],
            "limit_hits": {**self._limits.counts, "memory": self._limits.memory_kill_count()},
        }

    def _cpu_ticks(self) -> tuple[int, int]:
        """Busy and total time of all CPUs so far."""
        try:
            with open(f"{self._proc}/stat", "rb") as file:
                ticks = [int(field) for field in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return 0, 0
        total = sum(ticks)
        return total - sum(ticks[3:5]), total

    def _memory(self) -> dict[str, int]:
        found: dict[str, int] = {}
        try:
            with open(f"{self._proc}/meminfo", "rb") as file:
                for line in file:
                    name, _, rest = line.partition(b":")
                    found[name.decode("ascii", "replace")] = int(rest.split()[0]) * 1024
        except (OSError, ValueError, IndexError):
            pass
        total = found.get("MemTotal", 0)
        available = found.get("MemAvailable", found.get("MemFree", 0))
        limit = min([total, *_limits()])
        return {
            "mem_total": limit,
            "mem_used": min(max(0, total - available), limit),
            "mem_cache": found.get("Cached", 0),
        }


def _limits() -> list[int]:
    """What the cgroup we can see allows, if it limits anything."""
    limits = []
    for path in _MEMORY_LIMITS:
        try:
            with open(path, "rb") as file:
                limits.append(int(file.read()))
        except (OSError, ValueError):
            continue
    return limits
