"""Control groups of machines, on v1, v2 and hybrid hosts.

    v2      /sys/fs/cgroup/<parent>/<machine>
    v1      /sys/fs/cgroup/<controller>/<parent>/<machine>, one per controller
    hybrid  v1 controllers beside a v2 tree; the controllers that matter are where they are mounted

A machine's processes are put in before they run anything of the guest. Limits are the host's; nothing in here
trusts the guest. Every directory is ours by its parent's name, `firebrick-<instance>`.
"""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
CONTROLLERS = ("cpu", "cpuacct", "memory", "pids")
REMOVE_TRIES = 200
REMOVE_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMounts:
    """Where each controller lives. `v2` is None when no needed controller is in the unified tree."""

    v2: Path | None
    v1: Mapping[str, Path]
    every: tuple[Path, ...] = ()
    """Every hierarchy of the host, also those without a controller that we set."""

    @property
    def can_limit_swap(self) -> bool:
        """Whether the kernel accounts swap; a runtime that is asked to limit it fails otherwise."""
        v1 = self.v1.get("memory")
        return v1 is None or (v1 / "memory.memsw.limit_in_bytes").exists()

    @property
    def layout(self) -> str:
        if self.v1:
            return "hybrid" if self.v2 else "v1"
        return "v2"


def parse_mounts(mountinfo: str, v2_controllers: Mapping[str, str]) -> CgroupMounts:
    """From /proc/self/mountinfo and {v2 mount point: its cgroup.controllers}."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    every: list[Path] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point, kind = left.split()[4], right.split()[0]
        if kind in ("cgroup", "cgroup2"):
            every.append(Path(point))
        if kind == "cgroup2":
            if {"memory", "pids", "cpu"} & set(v2_controllers.get(point, "").split()):
                v2 = Path(point)
        elif kind == "cgroup":
            for option in right.split()[2].split(","):
                if option in CONTROLLERS:
                    v1.setdefault(option, Path(point))
    return CgroupMounts(v2=v2, v1=v1, every=tuple(every))


def find_mounts() -> CgroupMounts:
    """Look at this host."""
    text = Path("/proc/self/mountinfo").read_text()
    controllers = {}
    for line in text.splitlines():
        if " - cgroup2 " in line:
            point = line.split()[4]
            try:
                controllers[point] = (Path(point) / "cgroup.controllers").read_text()
            except OSError:
                controllers[point] = ""
    return parse_mounts(text, controllers)


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupUsage:
    """One reading. A counter that the host does not offer is 0."""

    cpu_ns: int
    memory_bytes: int
    memory_peak_bytes: int
    process_count: int
    oom_kill_count: int


class CgroupTree:
    """All cgroups of one instance. Methods block for microseconds; `remove` may wait for the kernel."""

    def __init__(self, parent: str, mounts: CgroupMounts | None = None, *, is_made_by_runtime: bool = False) -> None:
        """`is_made_by_runtime`: a tool makes the directories, in every hierarchy it finds; we kill and remove."""
        self._parent = parent
        self._mounts = mounts
        self._is_made_by_runtime = is_made_by_runtime

    @property
    def parent(self) -> str:
        return self._parent

    @property
    def mounts(self) -> CgroupMounts:
        if self._mounts is None:
            self._mounts = find_mounts()
        return self._mounts

    def directories(self, name: str) -> tuple[Path, ...]:
        """Every directory of one machine: one on v2, one per controller hierarchy on v1."""
        if self._is_made_by_runtime:
            return tuple(base / self._parent / name for base in self.mounts.every)
        bases = dict.fromkeys(self.mounts.v1.values())
        if self.mounts.v2 is not None:
            bases[self.mounts.v2] = None
        return tuple(base / self._parent / name for base in bases)

    def create(self, name: str, *, millicpu: int, memory_bytes: int, process_count: int) -> None:
        """Make the machine's cgroups with their limits. Idempotent. Raises OSError."""
        self._prepare_parents()
        for directory in self.directories(name):
            directory.mkdir(exist_ok=True)
        for file, text in self._limits(name, millicpu, memory_bytes, process_count):
            try:
                file.write_text(text)
            except OSError:
                # Swap accounting may be off in the kernel; every other limit must hold.
                if "swap" not in file.name and "memsw" not in file.name:
                    raise

    def _limits(self, name: str, millicpu: int, memory_bytes: int, process_count: int) -> list[tuple[Path, str]]:
        quota_us = max(1000, millicpu * CPU_PERIOD_US // 1000)
        if self.mounts.v2 is not None:
            home = self.mounts.v2 / self._parent / name
            found = [
                (home / "cpu.max", f"{quota_us} {CPU_PERIOD_US}"),
                (home / "memory.swap.max", "0"),
                (home / "memory.max", str(memory_bytes)),
                (home / "pids.max", str(process_count)),
            ]
            # In a hybrid layout a controller is on one side only.
            return [item for item in found if item[0].name.split(".")[0] not in self.mounts.v1] + self._v1_limits(
                name, quota_us, memory_bytes, process_count
            )
        return self._v1_limits(name, quota_us, memory_bytes, process_count)

    def _v1_limits(self, name: str, quota_us: int, memory_bytes: int, process_count: int) -> list[tuple[Path, str]]:
        found = []
        for controller, base in self.mounts.v1.items():
            home = base / self._parent / name
            if controller == "cpu":
                found += [
                    (home / "cpu.cfs_period_us", str(CPU_PERIOD_US)),
                    (home / "cpu.cfs_quota_us", str(quota_us)),
                ]
            elif controller == "memory":
                found += [
                    (home / "memory.limit_in_bytes", str(memory_bytes)),
                    (home / "memory.memsw.limit_in_bytes", str(memory_bytes)),
                ]
            elif controller == "pids":
                found.append((home / "pids.max", str(process_count)))
        return found

    def add(self, name: str, pid: int) -> None:
        """Move a process in; its later children are born there. Raises OSError."""
        for directory in self.directories(name):
            (directory / "cgroup.procs").write_text(str(pid))

    def pids(self, name: str) -> frozenset[int]:
        found: set[int] = set()
        for directory in self.directories(name):
            found |= _read_ints(directory / "cgroup.procs")
        return frozenset(found)

    def kill(self, name: str) -> None:
        """SIGKILL everything inside, once; nothing new is born meanwhile, and what was is caught by the next call."""
        for directory in self.directories(name):
            limit = directory / "pids.max"
            if limit.exists():
                limit.write_text("0")
            switch = directory / "cgroup.kill"
            if switch.exists():
                switch.write_text("1")
        for pid in self.pids(name):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def remove(self, name: str) -> None:
        """Kill what is inside and remove the directories. Idempotent. Raises OSError when the kernel keeps them."""
        for directory in self.directories(name):
            for attempt in range(REMOVE_TRIES):
                try:
                    directory.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    if attempt == REMOVE_TRIES - 1:
                        raise
                    self.kill(name)
                    time.sleep(REMOVE_PAUSE_S)

    def names(self) -> frozenset[str]:
        """Every machine that has a cgroup of this instance."""
        found: set[str] = set()
        for directory in self.directories(""):
            if directory.is_dir():
                found |= {item.name for item in directory.iterdir() if item.is_dir()}
        return frozenset(found)

    def usage(self, name: str) -> CgroupUsage | None:
        """None when the machine has no cgroup (any more)."""
        homes = [home for home in self.directories(name) if home.is_dir()]
        if not homes:
            return None
        files = {file: home / file for home in homes for file in _USAGE_FILES if (home / file).exists()}
        stat = _read_table(files.get("cpu.stat"))
        events = _read_table(files.get("memory.events")) | _read_table(files.get("memory.oom_control"))
        # The unified tree counts CPU even where v1 has the controller; both tell the same.
        cpu_ns = max(stat.get("usage_usec", 0) * 1000, _read_int(files.get("cpuacct.usage")))
        memory = _read_int(files.get("memory.current") or files.get("memory.usage_in_bytes"))
        peak = _read_int(files.get("memory.peak") or files.get("memory.max_usage_in_bytes"))
        return CgroupUsage(
            cpu_ns=cpu_ns,
            memory_bytes=memory,
            memory_peak_bytes=max(peak, memory),
            process_count=_read_int(files.get("pids.current")),
            oom_kill_count=events.get("oom_kill", 0),
        )

    def _prepare_parents(self) -> None:
        for directory in self.directories(""):
            directory.mkdir(exist_ok=True)
        if self.mounts.v2 is not None:
            offered = set((self.mounts.v2 / "cgroup.controllers").read_text().split())
            wanted = " ".join(f"+{name}" for name in ("cpu", "memory", "pids") if name in offered)
            for level in (self.mounts.v2, self.mounts.v2 / self._parent):
                (level / "cgroup.subtree_control").write_text(wanted)

    def remove_parent(self) -> None:
        """When no machine is left. A parent that is still used stays."""
        for directory in self.directories(""):
            try:
                directory.rmdir()
            except OSError:
                continue


_USAGE_FILES = (
    "cpu.stat",
    "cpuacct.usage",
    "memory.current",
    "memory.usage_in_bytes",
    "memory.peak",
    "memory.max_usage_in_bytes",
    "memory.events",
    "memory.oom_control",
    "pids.current",
)


def _read_int(path: Path | None) -> int:
    try:
        return int(path.read_text()) if path else 0
    except (OSError, ValueError):
        return 0


def _read_ints(path: Path) -> set[int]:
    try:
        return {int(line) for line in path.read_text().split()}
    except (OSError, ValueError):
        return set()


def _read_table(path: Path | None) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines() if path else []
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
