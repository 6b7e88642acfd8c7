"""What gvisor and container have in common beside the bundle: cgroup, record, first process, end.

A machine is found again after a crash of ours by its cgroup, which is made before anything runs; its record
(`<state_dir>/machines/<id>.json`) tells the process whose end is the machine's end. A cgroup without a living
process of a record is a leftover.
"""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from firebrick.linux.cgroup_tree import CgroupTree
from firebrick.linux.process import ProcessRef, process_ref, wait_gone
from firebrick.model.errors import Internal
from firebrick.model.ids import MachineId, is_machine_id
from firebrick.model.machine import ExitCause, Limits, MachineExit, Usage
from firebrick.runtimes.base import MachineStatus

EMPTY_TIMEOUT_S = 20.0
POLL_S = 0.002


class OciMachines:
    """The machines of one driver, by id."""

    def __init__(self, state_dir: Path, cgroups: CgroupTree) -> None:
        self._records = state_dir / "machines"
        self._cgroups = cgroups
        self._refs: dict[MachineId, ProcessRef] = {}
        self._ending: set[MachineId] = set()

    @property
    def cgroups(self) -> CgroupTree:
        return self._cgroups

    def create_cgroup(self, machine_id: MachineId, limits: Limits, *, overhead_mib: int, overhead_count: int) -> None:
        """Raises OSError."""
        self._cgroups.create(
            machine_id,
            millicpu=limits.millicpu,
            memory_bytes=(limits.memory_mib + overhead_mib) << 20,
            process_count=limits.process_count + overhead_count,
        )

    def keep(self, machine_id: MachineId, pid: int) -> None:
        """Remember the machine's first process. Raises OSError, ProcessLookupError when it has ended already."""
        ref = process_ref(pid)
        if ref is None:
            raise ProcessLookupError(pid)
        self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._records / f"{machine_id}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"pid": ref.pid, "start_ticks": ref.start_ticks}))
        fresh.rename(path)
        self._refs[machine_id] = ref

    def ref(self, machine_id: MachineId) -> ProcessRef | None:
        """The first process, dead or alive; None when nothing is known."""
        if machine_id not in self._refs:
            try:
                saved = json.loads((self._records / f"{machine_id}.json").read_text())
                self._refs[machine_id] = ProcessRef(**saved)
            except (OSError, ValueError, TypeError):
                return None
        return self._refs[machine_id]

    def status(self, machine_id: MachineId) -> MachineStatus:
        ref = self.ref(machine_id)
        is_running = self.is_running(machine_id)
        return MachineStatus(machine_id=machine_id, is_running=is_running, pid=ref.pid if ref and is_running else None)

    async def recover(self, destroy: Callable[[MachineId], Awaitable[None]]) -> tuple[MachineId, ...]:
        """The machines that run; what is left of others is destroyed."""
        running = []
        for machine_id in await asyncio.to_thread(self.known):
            if self.is_running(machine_id):
                running.append(machine_id)
            else:
                await destroy(machine_id)
        return tuple(running)

    def close(self) -> None:
        """Remove the parent cgroup when no machine is left."""
        if not self.known():
            self._cgroups.remove_parent()

    def is_running(self, machine_id: MachineId) -> bool:
        ref = self.ref(machine_id)
        return ref is not None and ref.is_alive() and ref.pid in self._cgroups.pids(machine_id)

    async def kill(self, machine_id: MachineId) -> None:
        """Return when nothing of the machine runs any more.

        Raises: Internal — processes stay after SIGKILL (in uninterruptible sleep, say).
        """
        self._ending.add(machine_id)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + EMPTY_TIMEOUT_S
        while await asyncio.to_thread(self._kill_once, machine_id):
            if loop.time() > deadline:
                pids = sorted(self._cgroups.pids(machine_id))
                raise Internal(f"Processes of the machine {machine_id} do not end.", detail=f"pids {pids}")
            await asyncio.sleep(POLL_S)

    def _kill_once(self, machine_id: MachineId) -> bool:
        """True while something is there."""
        if not self._cgroups.pids(machine_id):
            return False
        self._cgroups.kill(machine_id)
        return True

    async def forget(self, machine_id: MachineId) -> None:
        """After `kill`: remove cgroup and record. Raises OSError."""
        await asyncio.to_thread(self._cgroups.remove, machine_id)
        (self._records / f"{machine_id}.json").unlink(missing_ok=True)
        self._refs.pop(machine_id, None)
        self._ending.discard(machine_id)

    async def wait_exit(self, machine_id: MachineId) -> MachineExit:
        ref = self.ref(machine_id)
        if ref is None:
            return MachineExit(machine_id=machine_id, cause=ExitCause.LOST, detail="nothing is known of it")
        await wait_gone(ref)
        return MachineExit(machine_id=machine_id, cause=self._cause(machine_id))

    def _cause(self, machine_id: MachineId) -> ExitCause:
        if machine_id in self._ending:
            return ExitCause.DESTROYED
        usage = self._cgroups.usage(machine_id)
        if usage is not None and usage.oom_kill_count > 0:
            return ExitCause.OOM
        return ExitCause.GUEST_EXIT

    def usage(self, machine_id: MachineId) -> Usage | None:
        reading = self._cgroups.usage(machine_id)
        if reading is None:
            return None
        return Usage(
            cpu_ns=reading.cpu_ns,
            memory_bytes=reading.memory_bytes,
            memory_peak_bytes=reading.memory_peak_bytes,
            disk_bytes=0,
            process_count=reading.process_count,
            oom_kill_count=reading.oom_kill_count,
        )

    def known(self) -> tuple[MachineId, ...]:
        """Every machine of which a cgroup or a record is left."""
        names = set(self._cgroups.names())
        if self._records.is_dir():
            names |= {path.stem for path in self._records.glob("*.json")}
        return tuple(MachineId(name) for name in sorted(names) if is_machine_id(name))


def remove_tree(path: Path) -> None:
    """Remove a directory with all in it; one that is not there is fine. Raises OSError."""
    if path.exists():
        shutil.rmtree(path)
