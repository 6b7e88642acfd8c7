"""Containers by runc or crun: namespaces, an own range of user ids, seccomp, few capabilities, cgroups.

The host's kernel is shared: this keeps honest code apart and hostile code busy, but is not a boundary for
hostile tenants. Inside's root is an unprivileged user of the host, from a range that no other living machine of
this node has; its files appear under the same shift (`rootfs` prepares them so).

The tool is needed for starting only. It makes the cgroups (in every hierarchy it finds), so a machine is found
by them after a crash; a machine is ended by killing its cgroup and removing what the tool remembers of it.
"""

import asyncio
import platform
import resource
import shlex
from pathlib import Path

from firebrick.linux.cgroup_tree import CPU_PERIOD_US, CgroupMounts, CgroupTree
from firebrick.linux.process import CommandFailed, run_leaving_children
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError
from firebrick.model.ids import MachineId
from firebrick.model.machine import MachineExit, RuntimeName, Usage
from firebrick.runtimes.base import Capability, MachineSpec, MachineStatus, RuntimeFailed
from firebrick.runtimes.console import console_tail, open_console
from firebrick.runtimes.container.seccomp import seccomp_profile
from firebrick.runtimes.machines import OciMachines, remove_tree
from firebrick.runtimes.oci import Json, oci_config, write_bundle

START_TIMEOUT_S = 30.0
ID_COUNT = 65_536
OVERHEAD_MIB = 32
"""The guest agent's own memory, which the machine's limit should not pay for."""

MASKED_PATHS = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

log = get_log("container")


class ContainerRuntime:
    """Implements runtimes.base.Runtime."""

    name = RuntimeName.CONTAINER
    capabilities: frozenset[Capability] = frozenset({Capability.USER_NAMESPACE})

    def __init__(self, *, binary: Path, state_dir: Path, instance: str) -> None:
        self._binary = binary
        self._root = state_dir / "runc"
        cgroups = CgroupTree(f"firebrick-{instance}-container", is_made_by_runtime=True)
        self._machines = OciMachines(state_dir, cgroups)

    async def start(self, spec: MachineSpec) -> MachineStatus:
        try:
            pid = await self._start(spec)
            self._machines.keep(spec.machine_id, pid)
        except (OSError, CommandFailed, ValueError) as exc:
            await self._undo(spec.machine_id)
            raise RuntimeFailed(
                f"The machine {spec.machine_id} could not be started as a container.", detail=str(exc)
            ) from exc
        except asyncio.CancelledError:
            await asyncio.shield(self._undo(spec.machine_id))
            raise
        return MachineStatus(machine_id=spec.machine_id, is_running=True, pid=pid)

    async def _start(self, spec: MachineSpec) -> int:
        if spec.id_shift <= 0:
            raise ValueError("a container needs an id shift; without one inside's root would be the host's")
        cgroups = self._machines.cgroups
        config = container_config(
            spec, cgroup=f"/{cgroups.parent}/{spec.machine_id}", can_limit_swap=cgroups.mounts.can_limit_swap
        )
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        bundle = await asyncio.to_thread(write_bundle, spec.directory, config)
        pid_file = spec.directory / "pid"
        argv = [str(self._binary), "--root", str(self._root), "run", "--detach"]
        argv += ["--pid-file", str(pid_file), "--bundle", str(bundle), spec.machine_id]
        command = tool_command(self._binary, cgroups.mounts, argv)
        with open_console(spec.directory) as console:
            status = await run_leaving_children(command, output=console, timeout_s=START_TIMEOUT_S)
            if status != 0:
                raise CommandFailed(argv, status, console_tail(console))
        return int(await asyncio.to_thread(pid_file.read_text))

    async def _undo(self, machine_id: MachineId) -> None:
        try:
            await self.destroy(machine_id)
        except FirebrickError as exc:
            # `recover` finds it by its cgroup.
            log.error("machine.start_undo_failed", machine_id=machine_id, reason=exc.message, detail=exc.detail)

    async def destroy(self, machine_id: MachineId) -> None:
        await self._machines.kill(machine_id)
        try:
            await asyncio.to_thread(remove_tree, self._root / machine_id)
            await self._machines.forget(machine_id)
        except OSError as exc:
            raise RuntimeFailed(
                f"What is left of the machine {machine_id} could not be removed.", detail=str(exc)
            ) from exc

    async def inspect(self, machine_id: MachineId) -> MachineStatus:
        return self._machines.status(machine_id)

    async def wait_exit(self, machine_id: MachineId) -> MachineExit:
        return await self._machines.wait_exit(machine_id)

    async def usage(self, machine_id: MachineId) -> Usage | None:
        return self._machines.usage(machine_id)

    async def recover(self) -> tuple[MachineId, ...]:
        return await self._machines.recover(self.destroy)

    async def close(self) -> None:
        await asyncio.to_thread(self._machines.close)


def container_config(spec: MachineSpec, *, cgroup: str, can_limit_swap: bool) -> Json:
    """The OCI configuration of a container machine."""
    memory_bytes = (spec.limits.memory_mib + OVERHEAD_MIB) << 20
    memory = {"limit": memory_bytes} | ({"swap": memory_bytes} if can_limit_swap else {})
    mapping = [{"containerID": 0, "hostID": spec.id_shift, "size": ID_COUNT}]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = oci_config(
        spec,
        mounts=_mounts(),
        linux={
            "uidMappings": mapping,
            "gidMappings": mapping,
            "cgroupsPath": cgroup,
            "resources": {
                "cpu": {"quota": max(1000, spec.limits.millicpu * CPU_PERIOD_US // 1000), "period": CPU_PERIOD_US},
                "memory": memory,
                "pids": {"limit": spec.limits.process_count},
            },
            "seccomp": seccomp_profile(platform.machine()),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READ_ONLY_PATHS),
        },
        most_open_files_count=None if hard == resource.RLIM_INFINITY else hard,
    )
    config["linux"]["namespaces"] += [{"type": "user"}, {"type": "cgroup"}]
    return config


def tool_command(binary: Path, mounts: CgroupMounts, argv: list[str]) -> list[str]:
    """The command line to run: crun (1.8) refuses v1 with a v2 tree beside it; it works where it sees only v1."""
    beside = [path for path in mounts.every if path not in set(mounts.v1.values()) and path.name == "unified"]
    if binary.name != "crun" or not mounts.v1 or not beside:
        return argv
    hide = " && ".join(f"umount {shlex.quote(str(path))}" for path in beside)
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", f"{hide} && exec {shlex.join(argv)}"]


def _mounts() -> list[Json]:
    quiet = ["nosuid", "noexec", "nodev"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": quiet},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": [*quiet, "mode=1777", "size=64m"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": quiet},
        # A user namespace may mount sysfs only with a network namespace of its own making, and the host's would
        # tell much about the host. Nothing common needs more of it than that it is there.
        {"destination": "/sys", "type": "tmpfs", "source": "tmpfs", "options": [*quiet, "ro", "mode=555", "size=4k"]},
    ]
