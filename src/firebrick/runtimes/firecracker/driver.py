"""Firecracker: one microVM a machine, under its jailer, with a kernel of its own behind hardware virtualisation.

    cgroup ─▶ jail filled ─▶ tap ─▶ jailer ─▶ monitor (own user, root directory, pid and network namespace, seccomp)

The monitor is configured by a file, or is told over its API socket to go on from a save, and afterwards nothing but to
pause, to go on and to save; so a machine depends on no process of ours, and one that was adopted is like any other. It
ends with the monitor, which ends when the guest resets. How the sandbox ended the guest's init script leaves in a drive
of 512 bytes: it is the guest's word, and decides nothing but what is told of the exit.
"""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

from firebrick.linux.cgroup import CgroupLimits
from firebrick.model.ids import MachineId
from firebrick.model.machine import ExitCause, Limits, MachineExit, RuntimeName, Usage
from firebrick.runtimes.base import Capability, MachineSpec, MachineStatus, RuntimeFailed
from firebrick.runtimes.console import console_tail
from firebrick.runtimes.firecracker.agent_drive import AgentDrives
from firebrick.runtimes.firecracker.api import ApiFailed, MachineApi
from firebrick.runtimes.firecracker.balloon import Balloons
from firebrick.runtimes.firecracker.filling import fill_jail, read_report, read_started
from firebrick.runtimes.firecracker.huge_pages import HugePages, taken_mib
from firebrick.runtimes.firecracker.memory import AGENT, SaveFacts
from firebrick.runtimes.firecracker.plan import API_SOCKET, VSOCK_SOCKET, Jail, Rates, Report, Tools, cpu_count
from firebrick.runtimes.firecracker.saves import Saves
from firebrick.runtimes.firecracker.vsock import dial
from firebrick.runtimes.machines import START_TIMEOUT_S, DetachedMachines, StartPlan

OVERHEAD_MIB = 96
"""Memory beside the guest's own, which the same cgroup counts: the monitor, its tables of the guest's pages, and the
page cache of its drives, of which the kernel takes back what it needs."""
THREAD_COUNT = 32
"""Host threads of a monitor beside one for each virtual CPU; a guest's processes are none of the host's."""
KILLED = 128 + 9


class FirecrackerRuntime:
    """Implements runtimes.base.Runtime, Freezer, MemoryKeeper, MemoryGiver and AgentLine.

    Args:
        tools: as `firebrick setup firecracker` leaves them.
        state_dir: ours alone; kept over restarts.
        instance: in the names of our cgroups.
        huge_pages: guests have pages of 2 MiB that the host has set aside. Their memory is neither saved nor given
            back: the monitor maps no save into such pages, and has no balloon beside them.
    """

    name = RuntimeName.FIRECRACKER

    def __init__(
        self,
        *,
        tools: Tools,
        state_dir: Path,
        instance: str,
        rates: Rates | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        huge_pages: bool = False,
    ) -> None:
        small = frozenset() if huge_pages else frozenset({Capability.KEEPS_MEMORY, Capability.GIVES_BACK})
        self.capabilities = small | {Capability.FREEZE, Capability.OWN_KERNEL, Capability.AGENT_LINE}
        self._huge_pages = HugePages()
        self._tools = tools
        self._jails = state_dir / "jails"
        self._agents = AgentDrives(state_dir / "agents")
        self._saves = Saves(tools=tools, rates=rates or Rates(), start_timeout_s=start_timeout_s, huge_pages=huge_pages)
        self._balloons = Balloons(start_timeout_s=start_timeout_s)
        self._start_timeout_s = start_timeout_s
        self._machines = DetachedMachines(
            state_dir=state_dir,
            runtime_root=Jail(top=self._jails, machine_id=MachineId("")).directory,
            parent=f"firebrick-{instance}-firecracker",
            # A monitor that the kernel killed; the guest's own kills are in its report.
            oom_statuses=frozenset({-9}),
            start_timeout_s=start_timeout_s,
            mark=str(self._jails),
        )

    async def start(self, spec: MachineSpec) -> MachineStatus:
        if spec.image is None or spec.disk_file is None:
            raise RuntimeFailed(f"The machine {spec.machine_id} cannot be a microVM: it has no image or no disk file.")
        save = await self._saves.usable(spec) if spec.memory else None
        agent = spec.memory / AGENT if spec.memory else await self._agents.drive(spec.agent_dir)
        started = await self._saves.started(spec, save)
        jail = self._jail(spec.machine_id)

        def plan() -> StartPlan:
            return fill_jail(self._tools, jail, spec, agent=agent, started=started)

        if started.is_huge:
            pids = {found: self._machines.status(found).pid for found in self._huge_pages.machines}
            self._huge_pages.promise(spec.machine_id, started.memory_mib, pids)
        try:
            status = await self._machines.start(spec, host_limits(spec.limits), plan)
        except BaseException:
            self._huge_pages.forget(spec.machine_id)
            raise
        try:
            if save is None:
                await self._wait_running(spec)
            else:
                await self._load(spec, save)
        except BaseException:
            await self.destroy(spec.machine_id)
            raise
        return status

    async def _load(self, spec: MachineSpec, save: SaveFacts) -> None:
        """Let a monitor that waits go on from the save. Raises RuntimeFailed."""
        try:
            await self._saves.load(self._api(spec.machine_id), save, is_alive=lambda: self._is_alive(spec.machine_id))
        except ApiFailed as exc:
            detail = f"{exc} {console_tail(spec.directory)}".strip()
            raise RuntimeFailed(
                f"The machine {spec.machine_id} could not go on from its memory.", detail=detail
            ) from exc

    async def _wait_running(self, spec: MachineSpec) -> None:
        """Return when the guest's kernel runs. Raises RuntimeFailed."""
        try:
            await self._api(spec.machine_id).wait_state("Running", is_alive=lambda: self._is_alive(spec.machine_id))
        except ApiFailed as exc:
            if read_report(self._jail(spec.machine_id)) is not None:
                # It ran, and has ended meanwhile.
                return
            detail = f"{exc} {console_tail(spec.directory)}".strip()
            raise RuntimeFailed(f"The machine {spec.machine_id} could not be started.", detail=detail) from exc

    def _is_alive(self, machine_id: MachineId) -> bool:
        return self._machines.status(machine_id).is_running

    async def destroy(self, machine_id: MachineId) -> None:
        self._balloons.forget(machine_id)
        await self._machines.destroy(machine_id)
        self._huge_pages.forget(machine_id)

    async def freeze(self, machine_id: MachineId) -> None:
        try:
            await self._api(machine_id).pause()
        except ApiFailed as exc:
            raise RuntimeFailed(f"The machine {machine_id} could not be frozen.", detail=str(exc)) from exc

    async def thaw(self, machine_id: MachineId) -> None:
        api = self._api(machine_id)
        try:
            if await api.state() == "Paused":
                await api.resume()
        except ApiFailed as exc:
            raise RuntimeFailed(f"The machine {machine_id} could not be thawed.", detail=str(exc)) from exc

    async def dial(self, machine_id: MachineId, port: int) -> socket.socket:
        place = self._jail(machine_id).root / VSOCK_SOCKET
        return await dial(place, port, timeout_s=self._start_timeout_s)

    async def reclaim(self, machine_id: MachineId) -> int:
        return await self._machines.reclaim(machine_id)

    async def take_back(self, machine_id: MachineId) -> int:
        pid = self._machines.status(machine_id).pid
        return await self._balloons.take_back(machine_id, self._api(machine_id), pid) if pid is not None else 0

    async def save_memory(self, machine_id: MachineId, directory: Path) -> None:
        await self._saves.save(self._jail(machine_id), self._api(machine_id), directory)

    async def memory_version(self) -> str:
        return await self._saves.version()

    async def memory_refusal(self, directory: Path) -> str:
        return await self._saves.refusal(directory)

    async def inspect(self, machine_id: MachineId) -> MachineStatus:
        return self._machines.status(machine_id)

    async def wait_exit(self, machine_id: MachineId) -> MachineExit:
        ended = await self._machines.wait_exit(machine_id)
        if ended.cause is not ExitCause.GUEST_EXIT:
            return ended
        report = await asyncio.to_thread(read_report, self._jail(machine_id))
        return exit_of(machine_id, report, ended.exit_code)

    async def usage(self, machine_id: MachineId) -> Usage | None:
        found = self._machines.usage(machine_id)
        if found is None or machine_id not in self._huge_pages.machines:
            return found
        # The cgroup does not count them.
        huge_bytes = taken_mib(self._machines.status(machine_id).pid) << 20
        memory_bytes = found.memory_bytes + huge_bytes
        return replace(found, memory_bytes=memory_bytes, memory_peak_bytes=found.memory_peak_bytes + huge_bytes)

    async def recover(self) -> tuple[MachineId, ...]:
        found = await self._machines.recover()
        async with asyncio.TaskGroup() as group:
            # A monitor that is slow to answer keeps none of the others waiting.
            asked = {machine_id: group.create_task(self._settle(machine_id)) for machine_id in found}
        for machine_id in found:
            if asked[machine_id].result():
                await self._machines.destroy(machine_id)
        return tuple(machine_id for machine_id in found if not asked[machine_id].result())

    async def _settle(self, machine_id: MachineId) -> bool:
        """Finish what was being done with it. Whether it was to go on from a save and nobody told its monitor to: its
        start was cut off."""
        api = self._api(machine_id)
        try:
            started = await asyncio.to_thread(read_started, self._jail(machine_id))
            if started.is_huge:
                self._huge_pages.remember(machine_id, started.memory_mib)
            state = await api.state()
            if started.is_restored and state == "Not started":
                return True
            if not started.is_huge:
                # We may have ended while its balloon was full.
                await api.balloon(0)
        except (OSError, ValueError, ApiFailed):
            return False
        return False

    async def close(self) -> None:
        await asyncio.to_thread(self._machines.close)

    def _jail(self, machine_id: MachineId) -> Jail:
        return Jail(top=self._jails, machine_id=machine_id)

    def _api(self, machine_id: MachineId) -> MachineApi:
        return MachineApi(self._jail(machine_id).root / API_SOCKET, timeout_s=self._start_timeout_s)


def host_limits(limits: Limits) -> CgroupLimits:
    """What the host grants for a guest with these limits."""
    return CgroupLimits(
        millicpu=limits.millicpu,
        memory_bytes=(limits.memory_mib + OVERHEAD_MIB) << 20,
        process_count=cpu_count(limits) + THREAD_COUNT,
    )


def exit_of(machine_id: MachineId, report: Report | None, monitor_status: int | None) -> MachineExit:
    """Why a machine ended whose monitor is gone, from what the guest left and how the monitor ended."""
    if report is None:
        how = "ended" if monitor_status is None else f"ended with {monitor_status}"
        return MachineExit(
            machine_id=machine_id, cause=ExitCause.LOST, detail=f"The monitor {how}; the guest left no word."
        )
    if report.failure:
        return MachineExit(machine_id=machine_id, cause=ExitCause.LOST, detail=f"The guest: {report.failure}.")
    was_killed = report.exit_code == KILLED and report.oom_kill_count > 0
    return MachineExit(
        machine_id=machine_id,
        cause=ExitCause.OOM if was_killed else ExitCause.GUEST_EXIT,
        exit_code=report.exit_code,
    )
