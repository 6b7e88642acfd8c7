"""The kernel's log, for what no other file tells: which process it killed when a control group's memory ended."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

KERNEL_LOG = Path("/dev/kmsg")
RECORD_BYTES = 8192
"""The longest that the kernel gives at once; a shorter buffer is refused."""

_RECORD = re.compile(r"\d+,(?P<seq>\d+),(?P<at_us>\d+),[^;]*;(?P<text>[^\n]*)")
_KILL = re.compile(r"oom-kill:.*\btask_memcg=(?P<cgroup>[^,]+),task=(?P<name>.*),pid=(?P<pid>\d+),uid=\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryKill:
    """One process that the kernel killed for memory. `seq` numbers the kernel's lines since boot; `inside_pid` is its
    id in the innermost pid namespace, None when it was gone before we looked."""

    seq: int
    at: datetime
    cgroup: str
    name: str
    inside_pid: int | None = None


class KernelLog:
    """Where this process may read the log; where not, it is always empty."""

    def __init__(self, path: Path = KERNEL_LOG) -> None:
        try:
            self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._descriptor = None

    def fileno(self) -> int | None:
        """Readable when there is more; None: there never is."""
        return self._descriptor

    def read_kills(self) -> Iterator[MemoryKill]:
        """What was written since the last call, from the oldest that the kernel still has on. Does not block."""
        while self._descriptor is not None:
            try:
                record = os.read(self._descriptor, RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:
                # Overwritten before we came to it; the next read gives the oldest there is.
                continue
            except OSError:
                return self.close()
            if not record:
                return
            if b"oom-kill:" in record and (found := parse_kill(record.decode(errors="replace"))) is not None:
                yield found

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def parse_kill(record: str) -> MemoryKill | None:
    """None: the record is about something else."""
    line = _RECORD.match(record)
    kill = _KILL.match(line["text"]) if line is not None else None
    if line is None or kill is None:
        return None
    ago_s = max(0.0, time.clock_gettime(time.CLOCK_MONOTONIC) - int(line["at_us"]) / 1e6)
    return MemoryKill(
        seq=int(line["seq"]),
        at=datetime.fromtimestamp(time.time() - ago_s, UTC),
        cgroup=kill["cgroup"],
        name=kill["name"],
        inside_pid=_inside_pid(int(kill["pid"]), kill["cgroup"]) if ago_s < 10 else None,
    )


def _inside_pid(pid: int, cgroup: str) -> int | None:
    """The victim's own idea of its id. It takes the kernel a while to free the memory of what it killed, and until
    then, and until its parent has collected it, it can still be asked."""
    try:
        if cgroup not in Path(f"/proc/{pid}/cgroup").read_text():
            return None
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    except (OSError, ValueError):
        pass
    return None
