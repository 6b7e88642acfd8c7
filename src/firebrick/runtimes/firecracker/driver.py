"""Firecracker: one microVM a machine, under its jailer, with a kernel of its own behind hardware virtualisation.

    cgroup ─▶ jail filled ─▶ tap ─▶ jailer ─▶ monitor (own user, root directory, pid and network namespace, seccomp)

The monitor is configured by a file and told nothing afterwards but to pause and to go on, over its API socket; so a
machine depends on no process of ours, and one that was adopted is like any other. It ends with the monitor, which ends
when the guest resets. How the sandbox ended the guest's init script leaves in a drive of 512 bytes: it is the guest's
word, and decides nothing but what is told of the exit.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from firebrick.linux.cgroup import CgroupLimits
from firebrick.linux.erofs import mkfs_command
from firebrick.linux.mount import bind
from firebrick.linux.netns import call_inside
from firebrick.linux.nft import NftFailed
from firebrick.linux.process import CommandFailed, run
from firebrick.linux.tap import link_settings, put_tap_before
from firebrick.model.ids import MachineId
from firebrick.model.machine import ExitCause, Limits, MachineExit, RuntimeName, Usage
from firebrick.runtimes.base import Capability, MachineSpec, MachineStatus, RuntimeFailed
from firebrick.runtimes.console import console_tail
from firebrick.runtimes.firecracker.api import ApiFailed, MachineApi
from firebrick.runtimes.firecracker.plan import (
    API_SOCKET,
    CONFIG,
    REPORT,
    REPORT_BYTES,
    SPEC,
    TAP,
    Bound,
    Jail,
    Network,
    Rates,
    Report,
    Tools,
    bound_files,
    cpu_count,
    jailer_argv,
    machine_config,
    parse_report,
    spec_archive,
)
from firebrick.runtimes.machines import START_TIMEOUT_S, DetachedMachines, StartPlan

OVERHEAD_MIB = 96
"""Memory beside the guest's own, which the same cgroup counts: the monitor, its tables of the guest's pages, and the
page cache of its drives, of which the kernel takes back what it needs."""
THREAD_COUNT = 32
"""Host threads of a monitor beside one for each virtual CPU; a guest's processes are none of the host's."""
KILLED = 128 + 9
_STATE_POLL_S = 0.005
_LINK = "eth0"


class FirecrackerRuntime:
    """Implements runtimes.base.Runtime and Freezer.

    Args:
        tools: as `firebrick setup firecracker` leaves them.
        state_dir: ours alone; kept over restarts.
        instance: in the names of our cgroups.
    """

    name = RuntimeName.FIRECRACKER
    capabilities: frozenset[Capability] = frozenset({Capability.FREEZE, Capability.OWN_KERNEL})

    def __init__(
        self,
        *,
        tools: Tools,
        state_dir: Path,
        instance: str,
        rates: Rates | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._tools = tools
        self._jails = state_dir / "jails"
        self._agents = state_dir / "agents"
        self._rates = rates or Rates()
        self._start_timeout_s = start_timeout_s
        self._one_packer = asyncio.Lock()
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
        agent = await self._agent_image(spec.agent_dir)
        files = bound_files(self._tools, image=spec.image, disk=spec.disk_file, agent=agent)
        status = await self._machines.start(spec, host_limits(spec.limits), lambda: self._plan(spec, files))
        try:
            await self._wait_running(spec)
        except BaseException:
            await self._machines.destroy(spec.machine_id)
            raise
        return status

    def _plan(self, spec: MachineSpec, files: tuple[Bound, ...]) -> StartPlan:
        """In a thread of its own, which enters the machine's network namespace. Raises OSError, ValueError."""
        jail = self._jail(spec.machine_id)
        argv = jailer_argv(self._tools, jail, user_id=spec.user_id, netns=spec.netns)
        self._jails.mkdir(mode=0o711, parents=True, exist_ok=True)
        jail.root.mkdir(mode=0o700, parents=True)
        for file in files:
            if not file.read_only:
                os.chown(file.source, spec.user_id, spec.user_id)
        network = _network(spec.netns, spec.user_id)
        extra = {inside: source.read_bytes() for inside, source in spec.files.items()}
        _write(
            jail.root / CONFIG,
            json.dumps(machine_config(spec.limits, network=network, rates=self._rates)).encode(),
            spec,
        )
        _write(jail.root / SPEC, spec_archive(spec, network, extra), spec)
        _write(jail.root / REPORT, bytes(REPORT_BYTES), spec)
        return StartPlan(
            argv=argv, pid_file=jail.pid_file, joins_cgroup=True, mounts=_binding(jail.root, files)
        )  # fmt: skip

    async def _wait_running(self, spec: MachineSpec) -> None:
        """Return when the guest's kernel runs. Raises RuntimeFailed."""
        api = self._api(spec.machine_id)
        why = ""
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while self._machines.status(spec.machine_id).is_running:
                    try:
                        if await api.state() == "Running":
                            return
                    except ApiFailed as exc:
                        why = str(exc)
                    await asyncio.sleep(_STATE_POLL_S)
        except TimeoutError:
            why = f"not running after {self._start_timeout_s:g} s. {why}"
        if self._read_report(spec.machine_id) is not None:
            # It ran, and has ended meanwhile.
            return
        detail = f"{why} {console_tail(spec.directory)}".strip()
        raise RuntimeFailed(f"The machine {spec.machine_id} could not be started.", detail=detail)

    async def destroy(self, machine_id: MachineId) -> None:
        await self._machines.destroy(machine_id)

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

    async def reclaim(self, machine_id: MachineId) -> int:
        return await self._machines.reclaim(machine_id)

    async def inspect(self, machine_id: MachineId) -> MachineStatus:
        return self._machines.status(machine_id)

    async def wait_exit(self, machine_id: MachineId) -> MachineExit:
        ended = await self._machines.wait_exit(machine_id)
        if ended.cause is not ExitCause.GUEST_EXIT:
            return ended
        report = await asyncio.to_thread(self._read_report, machine_id)
        return exit_of(machine_id, report, ended.exit_code)

    async def usage(self, machine_id: MachineId) -> Usage | None:
        return self._machines.usage(machine_id)

    async def recover(self) -> tuple[MachineId, ...]:
        return await self._machines.recover()

    async def close(self) -> None:
        await asyncio.to_thread(self._machines.close)

    def _jail(self, machine_id: MachineId) -> Jail:
        return Jail(top=self._jails, machine_id=machine_id)

    def _api(self, machine_id: MachineId) -> MachineApi:
        return MachineApi(self._jail(machine_id).root / API_SOCKET)

    def _read_report(self, machine_id: MachineId) -> Report | None:
        try:
            # The jail's root is the monitor's to write: no link is followed out of it.
            descriptor = os.open(self._jail(machine_id).root / REPORT, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return parse_report(os.read(descriptor, REPORT_BYTES))
        finally:
            os.close(descriptor)

    async def _agent_image(self, agent_dir: Path) -> Path:
        """The guest agent's directory as a drive; packed once for each version. Raises RuntimeFailed."""
        async with self._one_packer:
            try:
                image = await asyncio.to_thread(self._agent_path, agent_dir)
                if not image.exists():
                    draft = image.with_suffix(".new")
                    draft.unlink(missing_ok=True)
                    await run(mkfs_command(draft, agent_dir, "--all-root"))
                    draft.chmod(0o644)
                    draft.rename(image)
                    # One that a machine still has stays with it, without a name.
                    for other in self._agents.iterdir():
                        if other != image:
                            other.unlink()
            except (OSError, CommandFailed) as exc:
                raise RuntimeFailed("The guest agent could not be packed into a drive.", detail=str(exc)) from exc
            return image

    def _agent_path(self, agent_dir: Path) -> Path:
        self._agents.mkdir(mode=0o711, parents=True, exist_ok=True)
        found = agent_dir.stat()
        # A new version is a new directory, put in place by rename.
        key = hashlib.sha256(f"{agent_dir} {found.st_ino} {found.st_mtime_ns}".encode()).hexdigest()[:16]
        return self._agents / f"{key}.erofs"


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


def _network(netns: Path, user_id: int) -> Network | None:
    """Put a tap before the namespace's link and tell how that is set; None where there is none. Raises OSError."""

    def join() -> Network | None:
        found = link_settings(_LINK)
        if found is None:
            return None
        try:
            put_tap_before(_LINK, TAP, user_id=user_id)
        except NftFailed as exc:
            raise OSError(f"the tap cannot be joined to {_LINK}: {exc}") from exc
        return Network(mac=found.mac, address=found.address, gateway=found.gateway)

    return call_inside(netns, join)


def _binding(root: Path, files: tuple[Bound, ...]) -> Callable[[], None]:
    """Called in the launcher's own mount namespace; the jailer takes these mounts along into the jail."""

    def bind_all() -> None:
        for file in files:
            place = root / file.name
            place.touch(mode=0o600)
            bind(file.source, place, read_only=file.read_only)

    return bind_all


def _write(path: Path, data: bytes, spec: MachineSpec) -> None:
    """For the monitor's user alone: the agent's token is in one of these."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(descriptor, spec.user_id, spec.user_id)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
    finally:
        os.close(descriptor)
