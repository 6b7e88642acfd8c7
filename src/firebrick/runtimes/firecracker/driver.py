"""Firecracker: one microVM a machine, under its jailer, with a kernel of its own behind hardware virtualisation.

    cgroup ─▶ jail filled ─▶ tap ─▶ jailer ─▶ monitor (own user, root directory, pid and network namespace, seccomp)

The monitor is configured by a file, or is told over its API socket to go on from a save, and afterwards nothing but to
pause, to go on and to save; so a machine depends on no process of ours, and one that was adopted is like any other. It
ends with the monitor, which ends when the guest resets. How the sandbox ended the guest's init script leaves in a drive
of 512 bytes: it is the guest's word, and decides nothing but what is told of the exit.
"""

import asyncio
import hashlib
import json
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from firebrick.runtimes.firecracker.memory import (
    AGENT,
    MOST_FACTS_BYTES,
    Host,
    SaveFacts,
    Started,
    misfit,
    read_processor,
    refusal,
    started_from_json,
    started_to_json,
    state_version,
)
from firebrick.runtimes.firecracker.plan import (
    API_SOCKET,
    CONFIG,
    DISK,
    MEMORY,
    REPORT,
    REPORT_BYTES,
    SAVE,
    SPEC,
    STATE,
    TAP,
    VSOCK_SOCKET,
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
    rate_changes,
    spec_archive,
)
from firebrick.runtimes.firecracker.saving import (
    SavePlace,
    describe_files,
    finish_save,
    give_agent,
    read_save,
)
from firebrick.runtimes.firecracker.vsock import dial
from firebrick.runtimes.machines import START_TIMEOUT_S, DetachedMachines, StartPlan

OVERHEAD_MIB = 96
"""Memory beside the guest's own, which the same cgroup counts: the monitor, its tables of the guest's pages, and the
page cache of its drives, of which the kernel takes back what it needs."""
THREAD_COUNT = 32
"""Host threads of a monitor beside one for each virtual CPU; a guest's processes are none of the host's."""
KILLED = 128 + 9
_STATE_POLL_S = 0.005
_LINK = "eth0"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ToolFacts:
    """What of the tools a save tells, and may be refused for."""

    guest_kernel_sha256: str
    initramfs_sha256: str
    snapshot_version: str


class FirecrackerRuntime:
    """Implements runtimes.base.Runtime, Freezer, MemoryKeeper and AgentLine.

    Args:
        tools: as `firebrick setup firecracker` leaves them.
        state_dir: ours alone; kept over restarts.
        instance: in the names of our cgroups.
    """

    name = RuntimeName.FIRECRACKER
    capabilities: frozenset[Capability] = frozenset(
        {Capability.FREEZE, Capability.OWN_KERNEL, Capability.KEEPS_MEMORY, Capability.AGENT_LINE}
    )

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
        self._tool_facts: tuple[object, _ToolFacts] | None = None
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
        save = await self._usable_save(spec) if spec.memory else None
        agent = spec.memory / AGENT if spec.memory else await self._agent_image(spec.agent_dir)
        facts = await self._read_tools()
        jail = self._jail(spec.machine_id)
        files = bound_files(self._tools, jail, image=spec.image, disk=spec.disk_file, save=spec.memory)

        def plan() -> StartPlan:
            return self._plan(spec, files, agent, _started(spec, save, facts, self._rates))

        status = await self._machines.start(spec, host_limits(spec.limits), plan)
        try:
            if save is None:
                await self._wait_running(spec)
            else:
                await self._load(spec, save)
        except BaseException:
            await self._machines.destroy(spec.machine_id)
            raise
        return status

    def _plan(self, spec: MachineSpec, files: tuple[Bound, ...], agent: Path, started: Started) -> StartPlan:
        """In a thread of its own, which enters the machine's network namespace. Raises OSError, ValueError."""
        jail = self._jail(spec.machine_id)
        assert spec.disk_file is not None
        disk = spec.disk_file.stat()
        argv = jailer_argv(
            self._tools,
            jail,
            user_id=spec.user_id,
            netns=spec.netns,
            largest_file_bytes=max(disk.st_size, spec.limits.memory_mib << 20),
            is_configured=not started.is_restored,
        )
        self._jails.mkdir(mode=0o711, parents=True, exist_ok=True)
        _check_mount(self._jails)
        jail.root.mkdir(mode=0o700, parents=True)
        SavePlace(directory=jail.save_place).make()
        give_agent(agent, jail.agent)
        if stat.S_ISBLK(disk.st_mode):
            # A node of its own: whose the host's is, others decide.
            os.mknod(jail.root / DISK, stat.S_IFBLK | 0o600, disk.st_rdev)
            os.chown(jail.root / DISK, spec.user_id, spec.user_id)
        else:
            os.chown(spec.disk_file, spec.user_id, spec.user_id)
        network = _network(spec.netns, spec.user_id)
        if started.is_restored and network != started.network:
            raise ValueError(f"its place in the network is {network}, and was {started.network} when it was saved")
        jail.started.write_text(started_to_json(replace(started, network=network)))
        if not started.is_restored:
            config = machine_config(spec.limits, network=network, rates=self._rates)
            _write(jail.root / CONFIG, json.dumps(config).encode(), spec)
        extra = {inside: source.read_bytes() for inside, source in spec.files.items()}
        _write(jail.root / SPEC, spec_archive(spec, network, extra), spec)
        _write(jail.root / REPORT, bytes(REPORT_BYTES), spec)
        return StartPlan(argv=argv, pid_file=jail.pid_file, joins_cgroup=True, mounts=_binding(jail.root, files))

    async def _load(self, spec: MachineSpec, save: SaveFacts) -> None:
        """Let a monitor that waits go on from the save. Raises RuntimeFailed."""
        api = self._api(spec.machine_id)
        changes: tuple[tuple[str, dict[str, object]], ...] = ()
        if save.started.rates != self._rates:
            changes = rate_changes(self._rates, has_network=save.started.network is not None)
        try:
            await self._wait_state(spec, "Not started")
            await api.load(memory=f"/{MEMORY}", state=f"/{STATE}", resumes=not changes)
            for path, body in changes:
                await api.change(path, body)
            if changes:
                await api.resume()
        except ApiFailed as exc:
            detail = f"{exc} {console_tail(spec.directory)}".strip()
            raise RuntimeFailed(
                f"The machine {spec.machine_id} could not go on from its memory.", detail=detail
            ) from exc

    async def _wait_state(self, spec: MachineSpec, state: str) -> None:
        """Return when the monitor is in that state. Raises ApiFailed: it ended, or did not get there in time."""
        api = self._api(spec.machine_id)
        why = ""
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while self._machines.status(spec.machine_id).is_running:
                    try:
                        if await api.state() == state:
                            return
                    except ApiFailed as exc:
                        why = str(exc)
                    await asyncio.sleep(_STATE_POLL_S)
        except TimeoutError:
            why = f"not {state.lower()} after {self._start_timeout_s:g} s. {why}"
        raise ApiFailed(why or "the monitor has ended")

    async def _wait_running(self, spec: MachineSpec) -> None:
        """Return when the guest's kernel runs. Raises RuntimeFailed."""
        try:
            await self._wait_state(spec, "Running")
        except ApiFailed as exc:
            if self._read_report(spec.machine_id) is not None:
                # It ran, and has ended meanwhile.
                return
            detail = f"{exc} {console_tail(spec.directory)}".strip()
            raise RuntimeFailed(f"The machine {spec.machine_id} could not be started.", detail=detail) from exc

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

    async def dial(self, machine_id: MachineId, port: int) -> socket.socket:
        return await dial(self._jail(machine_id).root / VSOCK_SOCKET, port)

    async def reclaim(self, machine_id: MachineId) -> int:
        return await self._machines.reclaim(machine_id)

    async def save_memory(self, machine_id: MachineId, directory: Path) -> None:
        jail = self._jail(machine_id)
        place = SavePlace(directory=jail.save_place)
        api = self._api(machine_id)
        try:
            started = await asyncio.to_thread(_read_started, jail)
            if (state := await api.state()) != "Paused":
                raise ValueError(f"it is not frozen but {state.lower()}")
            version = await api.version()
            await asyncio.to_thread(place.open_for, started.user_id)
            try:
                timeout_s = save_timeout_s(started.memory_mib, self._start_timeout_s)
                await api.save(memory=f"/{SAVE}/{MEMORY}", state=f"/{SAVE}/{STATE}", timeout_s=timeout_s)
                await asyncio.to_thread(self._take_out, jail, directory, started, version)
            finally:
                await asyncio.to_thread(place.clear)
        except (ApiFailed, OSError, ValueError) as exc:
            raise RuntimeFailed(f"The memory of {machine_id} could not be saved.", detail=str(exc)) from exc

    def _take_out(self, jail: Jail, directory: Path, started: Started, version: str) -> None:
        """Raises OSError, ValueError."""
        directory.chmod(0o700)
        place = SavePlace(directory=jail.save_place)
        state = place.read_state()
        host = _host(state_version(state))
        place.take_memory(directory / MEMORY, started.memory_mib << 20)
        give_agent(jail.agent, directory / AGENT)
        files = describe_files(directory, state)
        finish_save(directory, SaveFacts(firecracker=version, host=host, started=started, files=files), state)

    async def memory_refusal(self, directory: Path) -> str:
        try:
            return (await self._judge_save(directory))[1]
        except ValueError as exc:
            return str(exc)

    async def _judge_save(self, directory: Path) -> tuple[SaveFacts, str]:
        """A save, and why it cannot go on here. Raises RuntimeFailed, ValueError: it is damaged, as a sentence."""
        facts = await self._read_tools()
        save = await asyncio.to_thread(read_save, directory)
        return save, refusal(save, await asyncio.to_thread(_host, facts.snapshot_version))

    async def _usable_save(self, spec: MachineSpec) -> SaveFacts:
        """Raises RuntimeFailed, with the reason in its message."""
        assert spec.memory is not None
        try:
            save, why = await self._judge_save(spec.memory)
            why = why or misfit(save, cpu_count=cpu_count(spec.limits), memory_mib=spec.limits.memory_mib)
            if not why:
                return save
        except ValueError as exc:
            why = str(exc)
        raise RuntimeFailed(f"The machine {spec.machine_id} cannot go on from its memory. {why}")

    async def _read_tools(self) -> _ToolFacts:
        """Read once for each version of the tools. Raises RuntimeFailed."""
        tools = self._tools
        try:
            key = [(file, found.st_ino, found.st_mtime_ns) for file in tools.files if (found := file.stat())]
            if self._tool_facts is None or self._tool_facts[0] != key:
                said = await run([tools.firecracker, "--snapshot-version"], timeout_s=self._start_timeout_s)
                facts = _ToolFacts(
                    guest_kernel_sha256=await asyncio.to_thread(_sha256, tools.kernel),
                    initramfs_sha256=await asyncio.to_thread(_sha256, tools.initramfs),
                    snapshot_version=said.stdout.partition("\n")[0].strip().removeprefix("v"),
                )
                self._tool_facts = (key, facts)
        except (OSError, CommandFailed) as exc:
            raise RuntimeFailed("Firecracker's files cannot be used.", detail=str(exc)) from exc
        return self._tool_facts[1]

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
        found = await self._machines.recover()
        async with asyncio.TaskGroup() as group:
            # A monitor that is slow to answer keeps none of the others waiting.
            asked = {machine_id: group.create_task(self._is_waiting(machine_id)) for machine_id in found}
        for machine_id in found:
            if asked[machine_id].result():
                await self._machines.destroy(machine_id)
        return tuple(machine_id for machine_id in found if not asked[machine_id].result())

    async def _is_waiting(self, machine_id: MachineId) -> bool:
        """Whether it was to go on from a save and nobody told its monitor to: its start was cut off."""
        try:
            started = await asyncio.to_thread(_read_started, self._jail(machine_id))
            return started.is_restored and await self._api(machine_id).state() == "Not started"
        except (OSError, ValueError, ApiFailed):
            return False

    async def close(self) -> None:
        await asyncio.to_thread(self._machines.close)

    def _jail(self, machine_id: MachineId) -> Jail:
        return Jail(top=self._jails, machine_id=machine_id)

    def _api(self, machine_id: MachineId) -> MachineApi:
        return MachineApi(self._jail(machine_id).root / API_SOCKET, timeout_s=self._start_timeout_s)

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


def save_timeout_s(memory_mib: int, start_timeout_s: float) -> float:
    """A start's time, and as much again for each GiB that must reach the disk."""
    return start_timeout_s * (1 + memory_mib / 1024)


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


def _started(spec: MachineSpec, save: SaveFacts | None, tools: _ToolFacts, rates: Rates) -> Started:
    if save is not None:
        return replace(save.started, user_id=spec.user_id, rates=rates, is_restored=True)
    return Started(
        user_id=spec.user_id,
        cpu_count=cpu_count(spec.limits),
        memory_mib=spec.limits.memory_mib,
        guest_kernel_sha256=tools.guest_kernel_sha256,
        initramfs_sha256=tools.initramfs_sha256,
        network=None,
        rates=rates,
        is_restored=False,
    )


def _read_started(jail: Jail) -> Started:
    """Raises OSError, ValueError: it was started by an earlier version of ours."""
    with jail.started.open() as file:
        return started_from_json(file.read(MOST_FACTS_BYTES))


def _host(snapshot_version: str) -> Host:
    return Host(
        processor=read_processor(Path("/proc/cpuinfo").read_text(errors="replace")),
        kernel=os.uname().release,
        snapshot_version=snapshot_version,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_mount(jails: Path) -> None:
    """The jailer puts device files and the monitor's program there, and nobody would say why they do not work."""
    flags = os.statvfs(jails).f_flag
    for flag, option in ((os.ST_NODEV, "nodev"), (os.ST_NOEXEC, "noexec")):
        if flags & flag:
            raise OSError(
                f"{jails} lies on a filesystem mounted {option}, where no monitor starts: mount it without, or set "
                "data_dir to another one"
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
        return Network(mac=found.mac, address=found.address, gateway=found.gateway, mtu_bytes=found.mtu_bytes)

    return call_inside(netns, join)


def _binding(root: Path, files: tuple[Bound, ...]) -> Callable[[], None]:
    """Called in the launcher's own mount namespace; the jailer takes these mounts along into the jail."""

    def bind_all() -> None:
        for file in files:
            place = root / file.name
            if place.is_block_device():
                continue
            if file.is_directory:
                place.mkdir(mode=0o700)
            else:
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
