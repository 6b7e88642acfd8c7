"""Containers by runc or crun: namespaces, an own range of user ids, seccomp, few capabilities, cgroups.

The host's kernel is shared: this keeps honest code apart and hostile code busy, but is not a boundary for
hostile tenants. Inside's root is an unprivileged user of the host, from a range that no other living machine of
this node has; its files appear under the same shift (`rootfs` prepares them so, by an idmapped lower: Linux 5.19).

The runtime is needed for starting only. It puts the machine into the cgroup that we made; a machine is ended by
killing its cgroup and removing what the runtime remembers of it.
"""

import asyncio
import platform
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from firebrick.linux.cgroup import CPU_PERIOD_US, CgroupLayout, CgroupLimits, CgroupVersion
from firebrick.linux.mount import unmount
from firebrick.linux.process import CommandFailed, run
from firebrick.model.ids import MachineId
from firebrick.model.machine import Limits, MachineExit, RuntimeName, Usage
from firebrick.runtimes.base import Capability, MachineSpec, MachineStatus, RuntimeFailed
from firebrick.runtimes.container.seccomp import seccomp_profile
from firebrick.runtimes.machines import START_TIMEOUT_S, DetachedMachines, StartPlan
from firebrick.runtimes.oci import OPEN_FILES_COUNT, SHARED_MEMORY_MIB, Json, bind_mount, oci_config, write_bundle

ID_COUNT = 65_536
OVERHEAD_MIB = 32
"""The guest agent's own memory, which the machine's limit should not pay for."""

MASKED_PATHS = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_CPU_LIST = Path("/sys/devices/system/cpu")


class ContainerRuntime:
    """Implements runtimes.base.Runtime and Freezer.

    Args:
        binary: runc or crun; which of them, it tells itself.
        state_dir: ours alone; kept over restarts.
        instance: in the names of our cgroups.
    """

    name = RuntimeName.CONTAINER
    capabilities: frozenset[Capability] = frozenset({Capability.USER_NAMESPACE, Capability.FREEZE})

    def __init__(
        self, *, binary: Path, state_dir: Path, instance: str, start_timeout_s: float = START_TIMEOUT_S
    ) -> None:
        self._binary = binary
        self._root = state_dir / "oci"
        self._is_crun: bool | None = None
        self._machines = DetachedMachines(
            state_dir=state_dir,
            runtime_root=self._root,
            parent=f"firebrick-{instance}-container",
            oom_statuses=frozenset({-signal.SIGKILL}),
            start_timeout_s=start_timeout_s,
        )

    async def start(self, spec: MachineSpec) -> MachineStatus:
        if spec.id_shift <= 0:
            raise RuntimeFailed(
                f"The machine {spec.machine_id} cannot be a container: its rootfs was prepared without an id shift, "
                "and inside's root would be the host's."
            )
        if self._is_crun is None:
            self._is_crun = await is_crun(self._binary)
        hide = hidden_from_crun(self._machines.layout) if self._is_crun else None
        return await self._machines.start(spec, host_limits(spec.limits), lambda: self._plan(spec, hide))

    def _plan(self, spec: MachineSpec, hide: Callable[[], None] | None) -> StartPlan:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        cgroup = self._machines.cgroup(spec.machine_id).path
        bundle = write_bundle(spec.directory, container_config(spec, cgroup=cgroup, layout=self._machines.layout))
        pid_file = spec.directory / "pid"
        argv = [str(self._binary), "--root", str(self._root), "run", "--detach"]
        argv += ["--pid-file", str(pid_file), "--bundle", str(bundle)]
        return StartPlan(argv=[*argv, spec.machine_id], pid_file=pid_file, joins_cgroup=False, mounts=hide)

    async def destroy(self, machine_id: MachineId) -> None:
        await self._machines.destroy(machine_id)

    async def freeze(self, machine_id: MachineId) -> None:
        await self._machines.freeze(machine_id)

    async def thaw(self, machine_id: MachineId) -> None:
        await self._machines.thaw(machine_id)

    async def reclaim(self, machine_id: MachineId) -> int:
        return await self._machines.reclaim(machine_id)

    async def inspect(self, machine_id: MachineId) -> MachineStatus:
        return self._machines.status(machine_id)

    async def wait_exit(self, machine_id: MachineId) -> MachineExit:
        return await self._machines.wait_exit(machine_id)

    async def usage(self, machine_id: MachineId) -> Usage | None:
        return self._machines.usage(machine_id)

    async def recover(self) -> tuple[MachineId, ...]:
        return await self._machines.recover()

    async def close(self) -> None:
        await asyncio.to_thread(self._machines.close)


async def is_crun(binary: Path) -> bool:
    """Raises RuntimeFailed: it does not start."""
    try:
        said = await run([binary, "--version"], timeout_s=START_TIMEOUT_S)
    except CommandFailed as exc:
        raise RuntimeFailed(f"{binary} does not tell its version.", detail=str(exc)) from exc
    return said.stdout.startswith("crun")


def hidden_from_crun(layout: CgroupLayout) -> Callable[[], None] | None:
    """crun (1.8) refuses v1 hierarchies with a unified one beside them; it works where it sees only v1."""
    unified = layout.unified
    if layout.version is not CgroupVersion.HYBRID or unified is None:
        return None
    return lambda: unmount(unified, detach=True)


def host_limits(limits: Limits) -> CgroupLimits:
    """What the host grants for a guest with these limits."""
    return CgroupLimits(
        millicpu=limits.millicpu,
        memory_bytes=(limits.memory_mib + OVERHEAD_MIB) << 20,
        process_count=limits.process_count,
    )


def container_config(spec: MachineSpec, *, cgroup: str, layout: CgroupLayout) -> Json:
    """The OCI configuration of a container machine."""
    mapping = [{"containerID": 0, "hostID": spec.id_shift, "size": ID_COUNT}]
    # The runtime may not grant more open files than it may have itself.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = oci_config(
        spec,
        mounts=_mounts(layout, cgroup),
        rlimits={
            "RLIMIT_NOFILE": OPEN_FILES_COUNT if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_COUNT),
            # For each user of the machine, beside the group's limit for all: the guest agent learns the number from
            # it, and lets commands have a little less, so that it can always start another.
            "RLIMIT_NPROC": spec.limits.process_count,
        },
        linux={
            "uidMappings": mapping,
            "gidMappings": mapping,
            "cgroupsPath": cgroup,
            "resources": _resources(host_limits(spec.limits), layout),
            "seccomp": seccomp_profile(platform.machine()),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READ_ONLY_PATHS),
        },
    )
    config["linux"]["namespaces"] += [{"type": "user"}, {"type": "cgroup"}]
    return config


def _resources(limits: CgroupLimits, layout: CgroupLayout) -> Json:
    """The group has these limits already; a runtime that was told none would lift them."""
    memory = {"limit": limits.memory_bytes}
    if layout.can_limit_swap:
        memory["swap"] = limits.memory_bytes
    return {
        "cpu": {"quota": max(1000, limits.millicpu * CPU_PERIOD_US // 1000), "period": CPU_PERIOD_US},
        "memory": memory,
        "pids": {"limit": limits.process_count},
    }


def _mounts(layout: CgroupLayout, cgroup: str) -> list[Json]:
    quiet = ["nosuid", "noexec", "nodev"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    mounts: list[Json] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": quiet},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "nodev", "mode=1777", f"size={SHARED_MEMORY_MIB}m"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": quiet},
        # A user namespace may mount sysfs only with a network namespace of its own making, and the host's would
        # tell much about the host. Programs ask it for the CPUs and for their cgroup; those it has.
        {"destination": "/sys", "type": "tmpfs", "source": "tmpfs", "options": [*quiet, "ro", "mode=755", "size=64k"]},
        bind_mount(str(_CPU_LIST), _CPU_LIST, "ro", "nosuid", "nodev", "noexec"),
    ]
    if layout.version is CgroupVersion.HYBRID:
        # A runtime cannot mount these inside; what the guest must see of its limits are two directories of its own.
        mounts += [
            bind_mount(f"/sys/fs/cgroup/{name}", layout.v1[name] / cgroup.removeprefix("/"), "ro", *quiet)
            for name in ("memory", "pids")
            if name in layout.v1
        ]
    else:
        mounts.append(
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*quiet, "ro"]}
        )
    return mounts
