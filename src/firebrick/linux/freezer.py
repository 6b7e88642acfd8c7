"""Stand still: the freezers of cgroups, v1 and v2, and the memory of what is frozen.

v2's own freezer where the processes are in the unified hierarchy: it lets a frozen process be killed. v1's where they
are not; its frozen processes die at the thaw.
"""

import asyncio
import errno
import time
from pathlib import Path

from firebrick.linux.cgroup import PROCS, Cgroup, CgroupFailed, CgroupLayout

_POLL_FIRST_S, _POLL_MOST_S = 0.0005, 0.02


def _directory(hierarchy: Path, group: Cgroup) -> Path:
    return hierarchy / group.path.removeprefix("/")


class GroupFreezer:
    """The freezer of one group."""

    def __init__(self, layout: CgroupLayout, group: Cgroup) -> None:
        self._layout = layout
        self._group = group

    async def freeze(self, *, timeout_s: float) -> None:
        """Raises CgroupFailed, and then nothing is frozen: no freezer, or a process that does not stop in time."""
        directory, is_v2 = self._find()
        deadline = time.monotonic() + timeout_s
        pause_s = _POLL_FIRST_S
        try:
            while True:
                # NOTE: again and again with v1, which may stay at FREEZING when a process forks meanwhile.
                _write(directory, is_v2, frozen=True)
                if _is_frozen(directory, is_v2):
                    return
                if time.monotonic() > deadline:
                    raise CgroupFailed(f"processes of {self._group.path} do not stop within {timeout_s} s")
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _POLL_MOST_S)
        except OSError as exc:
            raise CgroupFailed(f"cannot freeze {self._group.path}: {exc}") from exc
        finally:
            if not _is_frozen(directory, is_v2):
                self.thaw()

    def thaw(self) -> None:
        """In every freezer there is. Idempotent; a group that is gone is fine. Raises CgroupFailed."""
        for directory, is_v2 in self._all():
            try:
                _write(directory, is_v2, frozen=False)
            except FileNotFoundError:
                continue
            except OSError as exc:
                if exc.errno != errno.ENODEV:
                    raise CgroupFailed(f"cannot thaw {self._group.path}: {exc}") from exc

    def reclaim(self) -> int:
        """Let the kernel take back what it can without losing anything; bytes given back. Never fails."""
        hierarchy = self._layout.hierarchy("memory")
        if hierarchy is None:
            return 0
        directory = _directory(hierarchy, self._group)
        before = _number(directory, self._layout)
        try:
            if self._layout.is_v1("memory"):
                (directory / "memory.force_empty").write_text("0")
            else:
                (directory / "memory.reclaim").write_text(str(before))
        except OSError:
            # EAGAIN, EBUSY: it could take back less than all, which is the rule.
            pass
        return max(0, before - _number(directory, self._layout))

    def _find(self) -> tuple[Path, bool]:
        for directory, is_v2 in self._all():
            try:
                if (directory / PROCS).read_text().strip():
                    return directory, is_v2
            except OSError:
                continue
        raise CgroupFailed(f"no freezer holds the processes of {self._group.path}")

    def _all(self) -> list[tuple[Path, bool]]:
        found = []
        if self._layout.unified is not None:
            found.append((_directory(self._layout.unified, self._group), True))
        if "freezer" in self._layout.v1:
            found.append((_directory(self._layout.v1["freezer"], self._group), False))
        return found


def _write(directory: Path, is_v2: bool, *, frozen: bool) -> None:
    name, value = ("cgroup.freeze", str(int(frozen))) if is_v2 else ("freezer.state", "FROZEN" if frozen else "THAWED")
    with (directory / name).open("r+") as file:
        file.write(value)


def _is_frozen(directory: Path, is_v2: bool) -> bool:
    try:
        if is_v2:
            return "frozen 1" in (directory / "cgroup.events").read_text().splitlines()
        return (directory / "freezer.state").read_text().strip() == "FROZEN"
    except OSError:
        return False


def _number(directory: Path, layout: CgroupLayout) -> int:
    name = "memory.usage_in_bytes" if layout.is_v1("memory") else "memory.current"
    try:
        return int((directory / name).read_text())
    except (OSError, ValueError):
        return 0
