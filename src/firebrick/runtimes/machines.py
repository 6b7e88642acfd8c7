"""What the drivers of real runtimes have in common: a detached machine's life, from its cgroup to its removal.

    cgroup ─▶ launcher ─▶ record ═▶ running ═▶ ended ─▶ cgroup emptied ─▶ runtime's state, cgroup, record gone

The cgroup comes first and holds all that the machine ever runs, so every later step can die with us and the
machine is still found. A record (`<state_dir>/machines/<id>.json`) is written last: it names the process whose
end is the machine's end. What has a cgroup, a record or state of the runtime, but no living process of a record
in its cgroup, is a leftover and is destroyed by `recover`. No command of the runtime is needed to end a machine.
"""

import asyncio
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from firebrick.linux.cgroup import Cgroup, CgroupFailed, CgroupLayout, CgroupLimits, CgroupParent, read_layout
from firebrick.linux.freezer import GroupFreezer
from firebrick.linux.launch import GROUP_END_POLL_S, GROUP_END_POLLS, Launch, launch
from firebrick.linux.netns import in_own_thread
from firebrick.linux.process import CommandFailed, ProcessRef
from firebrick.linux.process_watch import ProcessWatch, processes_with_arguments
from firebrick.linux.undo import UndoStack
from firebrick.log import get_log
from firebrick.model.errors import WrongState
from firebrick.model.ids import MachineId, is_machine_id
from firebrick.model.machine import ExitCause, MachineExit, Usage
from firebrick.runtimes.base import MachineSpec, MachineStatus, RuntimeFailed
from firebrick.runtimes.console import console_tail, open_console

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 20.0
FREEZE_TIMEOUT_S = 10.0

log = get_log("runtimes")

_MACHINE_ID = re.compile(r"m[a-z0-9]{19}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPlan:
    """How one driver starts one machine.

    Attributes:
        argv: the launcher, which must write the first process's id to `pid_file` and end.
        joins_cgroup: the launcher is in the machine's cgroup from the start; else the runtime puts the machine there.
        mounts: as in `Launch`.
    """

    argv: Sequence[str | Path]
    pid_file: Path
    joins_cgroup: bool
    mounts: Callable[[], None] | None = None


class DetachedMachines:
    """The machines of one driver, by id.

    Args:
        state_dir: the driver's own; made on first use.
        runtime_root: below it, where the runtime keeps its state: files and directories with the machine's id in
            their names.
        mark: stands in the command line of every launcher of ours; None: the path of `runtime_root` does.
        parent: name of the cgroup above all machines.
        oom_statuses: exit codes of a machine whose first process the kernel killed for memory.
        start_timeout_s: what a launcher may take. Where that is longer than START_TIMEOUT_S, so many times longer
            may an end and a freeze take.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        runtime_root: Path,
        parent: str,
        oom_statuses: frozenset[int],
        start_timeout_s: float,
        mark: str | None = None,
    ) -> None:
        self._records = state_dir / "machines"
        self._root = runtime_root
        self._mark = mark or str(runtime_root)
        self._parent = parent
        self._oom_statuses = oom_statuses
        self._start_timeout_s = start_timeout_s
        self._patience = max(1.0, start_timeout_s / START_TIMEOUT_S)
        self._layout: CgroupLayout | None = None
        self._watches: dict[MachineId, ProcessWatch] = {}
        self._ending: set[MachineId] = set()

    @property
    def layout(self) -> CgroupLayout:
        """The host's cgroups, read once."""
        if self._layout is None:
            self._layout = read_layout()
        return self._layout

    def cgroup(self, machine_id: MachineId) -> Cgroup:
        return self._cgroups.group(machine_id)

    @property
    def _cgroups(self) -> CgroupParent:
        return CgroupParent(self.layout, self._parent)

    async def start(self, spec: MachineSpec, limits: CgroupLimits, plan: Callable[[], StartPlan]) -> MachineStatus:
        """Make the cgroup, call `plan` (it writes the bundle; in a thread), launch, record.

        Raises: RuntimeFailed, and then nothing is left; WrongState: the machine has been started before, and goes on.
        """
        machine_id = spec.machine_id
        if self.cgroup(machine_id).exists() or self._record_path(machine_id).exists():
            raise WrongState(f"The machine {machine_id} has been started already.")
        try:
            async with UndoStack() as undo:
                undo.push(lambda: self._undo_start(machine_id))
                group = await self._cgroups.make(machine_id, limits)
                watch = await self._launch(spec, group, await in_own_thread(plan))
                self._watches[machine_id] = watch
                await in_own_thread(lambda: self._write_record(machine_id, watch.ref))
                undo.release()
        except (OSError, CgroupFailed, CommandFailed, ValueError) as exc:
            raise RuntimeFailed(f"The machine {machine_id} could not be started.", detail=str(exc)) from exc
        return self.status(machine_id)

    async def _undo_start(self, machine_id: MachineId) -> None:
        try:
            await in_own_thread(lambda: self._end_launchers(machine_id))
            await self.destroy(machine_id)
        except RuntimeFailed as exc:
            # What went wrong first is what the caller must hear; `recover` finds this one by its cgroup.
            log.error("machine.start_undo_failed", machine_id=machine_id, reason=exc.message, detail=exc.detail)

    def _end_launchers(self, machine_id: MachineId) -> None:
        """Of a start that was cut off. Some let a process go that leaves their group and makes cgroups: it must be gone
        before those are removed. Raises RuntimeFailed: they do not end."""
        for _ in range(GROUP_END_POLLS):
            found = [ref for ref, named in self._launchers() if machine_id in named]
            if not found:
                return
            for ref in found:
                ref.kill()
            time.sleep(GROUP_END_POLL_S)
        raise RuntimeFailed(f"The launcher of machine {machine_id} does not end.")

    async def _launch(self, spec: MachineSpec, group: Cgroup, plan: StartPlan) -> ProcessWatch:
        with open_console(spec.directory) as console:
            what = Launch(
                argv=plan.argv, output=console, mounts=plan.mounts,
                join=group.join_files if plan.joins_cgroup else (),
            )  # fmt: skip
            status = await launch(what, timeout_s=self._start_timeout_s)
            argv = [str(part) for part in plan.argv]
            if status != 0:
                raise CommandFailed(argv, status, console_tail(spec.directory))
            # NOTE: the pid is the runtime's word. It is watched only if that process is in the machine's cgroup.
            watch = ProcessWatch.open(_read_pid(plan.pid_file))
            if watch is not None and watch.ref.pid in group.pids():
                return watch
            if watch is not None:
                watch.close()
            raise CommandFailed(argv, status, f"its first process has ended. {console_tail(spec.directory)}")

    async def destroy(self, machine_id: MachineId) -> None:
        """End it and remove all that is left of it. Idempotent. Raises RuntimeFailed when it resists."""
        if not is_machine_id(machine_id):
            return
        self._ending.add(machine_id)
        try:
            group = self.cgroup(machine_id)
            # NOTE: killed first: then it ends at the thaw and does nothing more. v1 keeps frozen processes from dying.
            group.kill()
            self._freezer(machine_id).thaw()
            await group.end(timeout_s=END_TIMEOUT_S * self._patience)
            await asyncio.to_thread(_remove_named, self._root, machine_id)
            await group.remove()
            self._record_path(machine_id).unlink(missing_ok=True)
        except (OSError, CgroupFailed) as exc:
            raise RuntimeFailed(f"The machine {machine_id} could not be destroyed.", detail=str(exc)) from exc
        watch = self._watches.pop(machine_id, None)
        if watch is not None:
            watch.close()
        self._ending.discard(machine_id)

    async def freeze(self, machine_id: MachineId) -> None:
        """Raises RuntimeFailed; then it runs on."""
        try:
            await self._freezer(machine_id).freeze(timeout_s=FREEZE_TIMEOUT_S * self._patience)
        except CgroupFailed as exc:
            raise RuntimeFailed(f"The machine {machine_id} could not be frozen.", detail=str(exc)) from exc

    async def thaw(self, machine_id: MachineId) -> None:
        """Raises RuntimeFailed."""
        try:
            self._freezer(machine_id).thaw()
        except CgroupFailed as exc:
            raise RuntimeFailed(f"The machine {machine_id} could not be thawed.", detail=str(exc)) from exc

    async def reclaim(self, machine_id: MachineId) -> int:
        return await asyncio.to_thread(self._freezer(machine_id).reclaim)

    def _freezer(self, machine_id: MachineId) -> GroupFreezer:
        return GroupFreezer(self.layout, self.cgroup(machine_id))

    def status(self, machine_id: MachineId) -> MachineStatus:
        watch = self._watches.get(machine_id)
        is_running = watch is not None and watch.is_alive
        return MachineStatus(
            machine_id=machine_id, is_running=is_running, pid=watch.ref.pid if watch and is_running else None
        )

    async def wait_exit(self, machine_id: MachineId) -> MachineExit:
        watch = self._watches.get(machine_id)
        if watch is None:
            return MachineExit(machine_id=machine_id, cause=ExitCause.LOST, detail="Nothing is known of this machine.")
        await watch.wait()
        code = watch.exit_code() if machine_id in self._watches else None
        if machine_id in self._ending or machine_id not in self._watches:
            return MachineExit(machine_id=machine_id, cause=ExitCause.DESTROYED)
        reading = self.cgroup(machine_id).read_usage()
        is_oom = reading is not None and reading.oom_kill_count > 0 and (code is None or code in self._oom_statuses)
        return MachineExit(
            machine_id=machine_id, cause=ExitCause.OOM if is_oom else ExitCause.GUEST_EXIT, exit_code=code
        )

    def usage(self, machine_id: MachineId) -> Usage | None:
        reading = self.cgroup(machine_id).read_usage()
        if reading is None or machine_id not in self._watches:
            return None
        return Usage(
            cpu_ns=reading.cpu_ns,
            memory_bytes=reading.memory_bytes,
            memory_peak_bytes=reading.memory_peak_bytes,
            disk_bytes=0,
            process_count=reading.process_count,
            oom_kill_count=reading.oom_kill_count,
        )

    async def recover(self) -> tuple[MachineId, ...]:
        """The machines that run; what is left of others is destroyed."""
        known = await asyncio.to_thread(self._find_known)
        running = [machine_id for machine_id in known if self._adopt(machine_id)]
        await asyncio.to_thread(self._kill_strays, frozenset(running))
        for machine_id in known:
            if machine_id not in running:
                await self.destroy(machine_id)
        return tuple(running)

    def close(self) -> None:
        """Machines go on. The parent cgroup goes with the last of them."""
        while self._watches:
            self._watches.popitem()[1].close()
        self._cgroups.remove_parent()

    def _adopt(self, machine_id: MachineId) -> bool:
        recorded = self._read_record(machine_id)
        if recorded is None:
            return False
        watch = ProcessWatch.open(recorded.pid)
        if watch is None:
            return False
        if watch.ref != recorded or not watch.is_alive or recorded.pid not in self.cgroup(machine_id).pids():
            watch.close()
            return False
        self._watches[machine_id] = watch
        return True

    def _find_known(self) -> tuple[MachineId, ...]:
        names = [*self._cgroups.names(), *_names_in(self._records), *_names_in(self._root)]
        found = {match.group() for name in names if (match := _MACHINE_ID.search(name))}
        return tuple(MachineId(name) for name in sorted(found))

    def _kill_strays(self, running: frozenset[MachineId]) -> None:
        """Launchers that were at work when we were killed, and are in no cgroup yet."""
        for ref, named in self._launchers():
            if named and not named & running:
                ref.kill()

    def _launchers(self) -> Iterator[tuple[ProcessRef, frozenset[MachineId]]]:
        """Those of ours that run, and the machines that they name."""
        for ref in processes_with_arguments(self._mark):
            try:
                arguments = Path(f"/proc/{ref.pid}/cmdline").read_bytes() if ref.is_alive() else b""
            except OSError:
                # It has ended meanwhile.
                continue
            yield ref, frozenset(MachineId(name) for name in _MACHINE_ID.findall(arguments.decode(errors="replace")))

    def _record_path(self, machine_id: MachineId) -> Path:
        return self._records / f"{machine_id}.json"

    def _write_record(self, machine_id: MachineId, ref: ProcessRef) -> None:
        self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._record_path(machine_id)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps({"pid": ref.pid, "start_ticks": ref.start_ticks}))
        draft.rename(path)

    def _read_record(self, machine_id: MachineId) -> ProcessRef | None:
        try:
            saved = json.loads(self._record_path(machine_id).read_text())
            return ProcessRef(pid=int(saved["pid"]), start_ticks=int(saved["start_ticks"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _read_pid(path: Path) -> int:
    """Raises OSError, ValueError: the runtime said that all is well and wrote no process id."""
    return int(path.read_text())


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _remove_named(directory: Path, machine_id: MachineId) -> None:
    """Remove what the runtime keeps for a machine. Raises OSError."""
    for name in _names_in(directory):
        path = directory / name
        if machine_id not in name:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=_unless_gone)
        else:
            path.unlink(missing_ok=True)


def _unless_gone(_: object, __: str, raised: tuple[object, BaseException, object]) -> None:
    """Another destroy of the same machine, or the runtime itself, may remove it at the same time."""
    if not isinstance(raised[1], FileNotFoundError):
        raise raised[1]
