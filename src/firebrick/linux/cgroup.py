"""Control groups of our machines, whichever way the machine mounts them.

    v1      one hierarchy per controller, each mounted on its own
    v2      one unified hierarchy
    hybrid  v1 hierarchies, and a unified one beside them that holds what is left, often nothing

One machine is one directory `<parent>/<name>` in every hierarchy that limits, counts or ends it. Nothing that is
not ours is moved: the parent lies at the top, where a process may live beside it. Reading the mount table is
pure; everything else is small reads and writes of kernel files, which do not block.
"""

import asyncio
import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from firebrick.linux.mount import parse_mountinfo

CGROUP_ROOT = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
PROCS = "cgroup.procs"

_NEEDED = ("cpu", "memory", "pids")
_V1_CONTROLLERS = frozenset(
    [
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
        "rdma",
    ]
)
_POLL_FIRST_S, _POLL_MOST_S = 0.001, 0.05
_REMOVE_TIMEOUT_S = 5.0


class CgroupFailed(Exception):
    """A control group could not be made, emptied or removed; the message names it and the kernel's reason."""


class CgroupVersion(StrEnum):
    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLimits:
    """The most that all processes of one group may use together. No swap on top of the memory."""

    millicpu: int
    memory_bytes: int
    process_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupUsage:
    """One reading. Memory is without the page cache that the kernel would drop first."""

    cpu_ns: int
    memory_bytes: int
    memory_peak_bytes: int
    process_count: int
    oom_kill_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLayout:
    """Where hierarchies are mounted. A v1 key is a controller, or `name=…` of one without a controller."""

    v1: Mapping[str, Path]
    unified: Path | None
    unified_controllers: frozenset[str] = frozenset()

    @property
    def version(self) -> CgroupVersion:
        if not self.v1:
            return CgroupVersion.V2
        return CgroupVersion.V1 if self.unified is None else CgroupVersion.HYBRID

    @property
    def missing(self) -> tuple[str, ...]:
        """Controllers that we need and no hierarchy has."""
        return tuple(name for name in _NEEDED if name not in self.v1 and name not in self.unified_controllers)

    def is_v1(self, controller: str) -> bool:
        return controller in self.v1

    def hierarchy(self, controller: str) -> Path | None:
        if controller in self.v1:
            return self.v1[controller]
        return self.unified if controller in self.unified_controllers else None

    @property
    def can_limit_swap(self) -> bool:
        """Whether the kernel accounts swap; a runtime that is asked to limit it where it does not fails."""
        if "memory" in self.v1:
            return (self.v1["memory"] / "memory.memsw.limit_in_bytes").exists()
        return self.unified is not None and any(self.unified.glob("*/memory.swap.max"))

    @property
    def enabled_in_unified(self) -> tuple[str, ...]:
        """Of what we need, what the unified hierarchy has to give."""
        return tuple(name for name in _NEEDED if name not in self.v1 and name in self.unified_controllers)

    @property
    def used(self) -> tuple[Path, ...]:
        """Hierarchies in which a machine gets a directory. The unified one always: it can kill a whole group."""
        found = [self.v1[name] for name in (*_NEEDED, "cpuacct", "freezer") if name in self.v1]
        return tuple(dict.fromkeys([*found, *([self.unified] if self.unified else [])]))

    @property
    def all(self) -> tuple[Path, ...]:
        """Every hierarchy: a container runtime makes directories in all of them."""
        return tuple(dict.fromkeys([*self.v1.values(), *([self.unified] if self.unified else [])]))


def read_layout() -> CgroupLayout:
    """What is mounted here. Raises OSError."""
    layout = parse_layout(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    if layout.unified is None:
        return layout
    controllers = (layout.unified / "cgroup.controllers").read_text().split()
    return CgroupLayout(v1=layout.v1, unified=layout.unified, unified_controllers=frozenset(controllers))


def parse_layout(mountinfo: str) -> CgroupLayout:
    """Find the hierarchies in a mount table; which controllers the unified one has is not in it."""
    v1: dict[str, Path] = {}
    unified: Path | None = None
    for entry in parse_mountinfo(mountinfo):
        if not entry.target.is_relative_to(CGROUP_ROOT):
            continue
        if entry.fstype == "cgroup2":
            unified = unified or entry.target
        elif entry.fstype == "cgroup":
            for option in entry.options.split(","):
                if option in _V1_CONTROLLERS or option.startswith("name="):
                    v1.setdefault(option, entry.target)
    return CgroupLayout(v1=v1, unified=unified)


def limit_files(layout: CgroupLayout, limits: CgroupLimits) -> Iterator[tuple[str, str, str, bool]]:
    """(controller, file, value, whether it must be there), in the order in which the kernel accepts them."""
    quota = max(1000, limits.millicpu * CPU_PERIOD_US // 1000)
    memory = str(limits.memory_bytes)
    if layout.is_v1("cpu"):
        yield "cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US), True
        yield "cpu", "cpu.cfs_quota_us", str(quota), True
    else:
        yield "cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}", True
    if layout.is_v1("memory"):
        yield "memory", "memory.limit_in_bytes", memory, True
        # NOTE: after the limit above, which it may not be lower than. Kernels without swap accounting lack it.
        yield "memory", "memory.memsw.limit_in_bytes", memory, False
    else:
        yield "memory", "memory.max", memory, True
        yield "memory", "memory.swap.max", "0", False
    yield "pids", "pids.max", str(limits.process_count), True


class Cgroup:
    """The directories of one machine; they may or may not be there."""

    def __init__(self, layout: CgroupLayout, parent: str, name: str) -> None:
        self._layout = layout
        self.path = f"/{parent}/{name}"
        self.name = name

    @property
    def join_files(self) -> tuple[Path, ...]:
        """A process that writes 0 to each of these is in the group, and so are its later children."""
        return tuple(directory / PROCS for directory in self._directories(self._layout.used))

    def exists(self) -> bool:
        return any(directory.is_dir() for directory in self._directories(self._layout.all))

    def pids(self) -> frozenset[int]:
        """Every process in it and below it."""
        found: set[int] = set()
        for directory in self._directories(self._layout.all):
            for top, _, _ in os.walk(directory):
                found.update(int(word) for word in _read(Path(top) / PROCS).split())
        # 0 stands for a process that this pid namespace cannot name.
        return frozenset(found - {0})

    def kill(self) -> None:
        """SIGKILL every process in it, once: one that was just forked may be missed where there is no v2."""
        if self._layout.unified is not None:
            try:
                (self._directory(self._layout.unified) / "cgroup.kill").write_text("1")
            except OSError:
                pass  # before 5.14 there is no such file; the loop below does it
        handles = [(pid, handle) for pid in self.pids() if (handle := _open_process(pid)) is not None]
        try:
            # NOTE: read again, with the handles open: a pid that is still listed now is the process we hold.
            still_here = self.pids()
            for pid, handle in handles:
                if pid in still_here:
                    _send_kill(handle)
        finally:
            for _, handle in handles:
                os.close(handle)

    async def end(self, *, timeout_s: float) -> None:
        """Kill until nothing is left in it. Raises CgroupFailed when processes resist (stuck in the kernel)."""
        deadline = time.monotonic() + timeout_s
        pause_s = _POLL_FIRST_S
        while self.pids():
            self.kill()
            if time.monotonic() > deadline:
                raise CgroupFailed(f"processes {sorted(self.pids())} of {self.path} are not gone after {timeout_s} s")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _POLL_MOST_S)

    async def remove(self) -> None:
        """Remove the empty group from every hierarchy. Idempotent. Raises CgroupFailed."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        for directory in self._directories(self._layout.all):
            while (reason := _remove_tree(directory)) is not None:
                if time.monotonic() > deadline:
                    raise CgroupFailed(f"cannot remove {directory}: {reason}")
                await asyncio.sleep(_POLL_FIRST_S)

    def read_usage(self) -> CgroupUsage | None:
        """None when it is not there."""
        memory = self._controller("memory")
        if memory is None or not memory.is_dir():
            return None
        used, peak, ooms = self._read_memory(memory)
        return CgroupUsage(
            cpu_ns=self._read_cpu_ns(),
            memory_bytes=used,
            memory_peak_bytes=max(peak, used),
            process_count=_number(self._controller("pids"), "pids.current"),
            oom_kill_count=ooms,
        )

    def _read_memory(self, directory: Path) -> tuple[int, int, int]:
        stat = _table(directory, "memory.stat")
        if self._layout.is_v1("memory"):
            used, cache = _number(directory, "memory.usage_in_bytes"), stat.get("total_inactive_file", 0)
            peak = _number(directory, "memory.max_usage_in_bytes")
            ooms = _table(directory, "memory.oom_control").get("oom_kill", 0)
        else:
            used, cache = _number(directory, "memory.current"), stat.get("inactive_file", 0)
            peak = _number(directory, "memory.peak")
            ooms = _table(directory, "memory.events").get("oom_kill", 0)
        return max(0, used - cache), peak, ooms

    def _read_cpu_ns(self) -> int:
        if "cpuacct" in self._layout.v1:
            return _number(self._controller("cpuacct"), "cpuacct.usage")
        if self._layout.unified is None:
            return 0
        return _table(self._directory(self._layout.unified), "cpu.stat").get("usage_usec", 0) * 1000

    def _controller(self, controller: str) -> Path | None:
        hierarchy = self._layout.hierarchy(controller)
        return None if hierarchy is None else self._directory(hierarchy)

    def _directory(self, hierarchy: Path) -> Path:
        return hierarchy / self.path.removeprefix("/")

    def _directories(self, hierarchies: Iterable[Path]) -> Iterator[Path]:
        return (self._directory(hierarchy) for hierarchy in hierarchies)


class CgroupParent:
    """The groups of one driver of one instance: `<parent>/<name>`."""

    def __init__(self, layout: CgroupLayout, parent: str) -> None:
        self._layout = layout
        self._parent = parent

    def group(self, name: str) -> Cgroup:
        return Cgroup(self._layout, self._parent, name)

    def names(self) -> frozenset[str]:
        """Every group that is there, in whichever hierarchy: what an earlier process of ours left."""
        found: set[str] = set()
        for hierarchy in self._layout.all:
            found.update(path.name for path in (hierarchy / self._parent).glob("*/"))
        return frozenset(found)

    async def make(self, name: str, limits: CgroupLimits) -> Cgroup:
        """Make a group with its limits. Raises CgroupFailed; then nothing of it is left."""
        if self._layout.missing:
            raise CgroupFailed(f"no cgroup hierarchy has the controllers {', '.join(self._layout.missing)}")
        group = self.group(name)
        try:
            self._make_directories(name)
            for controller, file, value, must in limit_files(self._layout, limits):
                hierarchy = self._layout.hierarchy(controller)
                assert hierarchy is not None, controller
                path = hierarchy / self._parent / name / file
                if must or path.exists():
                    _write(path, value)
        except OSError as exc:
            await group.remove()
            raise CgroupFailed(f"cannot set up the group {group.path}: {exc}") from exc
        return group

    def remove_parent(self) -> None:
        """Remove the parent where it is empty; where it is not, somebody still needs it."""
        for hierarchy in self._layout.all:
            try:
                (hierarchy / self._parent).rmdir()
            except OSError:
                pass

    def _make_directories(self, name: str) -> None:
        for hierarchy in self._layout.used:
            parent = hierarchy / self._parent
            parent.mkdir(exist_ok=True)
            if hierarchy == self._layout.unified:
                # A controller reaches a group only through every group above it.
                for above in (hierarchy, parent):
                    self._enable(above)
            (parent / name).mkdir()

    def _enable(self, directory: Path) -> None:
        wanted = set(self._layout.enabled_in_unified) - set(_read(directory / "cgroup.subtree_control").split())
        if not wanted:
            return
        try:
            _write(directory / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(wanted)))
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            raise OSError(
                exc.errno, f"it holds processes, so cgroup v2 lets it pass no controller on; move them: {directory}"
            ) from exc


def _open_process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _send_kill(handle: int) -> None:
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _remove_tree(directory: Path) -> str | None:
    """Remove what can be removed; a reason when something stays."""
    for top, _, _ in os.walk(directory, topdown=False):
        try:
            os.rmdir(top)
        except FileNotFoundError:
            continue
        except OSError as exc:
            return exc.strerror
    return None


def _write(path: Path, value: str) -> None:
    # Not write_text: a kernel file is neither made nor truncated, and takes a value in one write.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(directory: Path | None, file: str) -> int:
    text = "" if directory is None else _read(directory / file).strip()
    return int(text) if text.isdigit() else 0


def _table(directory: Path, file: str) -> dict[str, int]:
    pairs = (line.split() for line in _read(directory / file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
