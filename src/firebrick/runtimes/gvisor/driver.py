"""gVisor: a user-space kernel (the sentry) between the guest and the host's.

`runsc run --detach` starts sentry and gofer in the machine's cgroup and ends; the sentry's end is the machine's.
From then on no `runsc` command is needed: the guest is reached over the network, killed through its cgroup, and
what runsc remembers of it are files that bear its id. That matters because runsc's own delete takes over a
second, and because runsc takes any unique prefix of an id for the id (so all ids have one length).

runsc runs in a mount namespace of its own for two reasons: releases before 2024-08 mistake every network
namespace for the host's where /proc/sys/net/core/rmem_default shows in all of them (an empty tmpfs over
/proc/sys/net mends it), and the sentry takes the memory it reports inside from /proc/meminfo.
"""

import asyncio
import re
import shlex
from pathlib import Path

from firebrick.linux.cgroup_tree import CgroupTree
from firebrick.linux.process import CommandFailed, run, run_leaving_children
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError
from firebrick.model.ids import MachineId
from firebrick.model.machine import MachineExit, RuntimeName, Usage
from firebrick.runtimes.base import Capability, MachineSpec, MachineStatus, RuntimeFailed
from firebrick.runtimes.console import console_tail, open_console
from firebrick.runtimes.machines import OciMachines
from firebrick.runtimes.oci import Json, bind_mount, oci_config, write_bundle

START_TIMEOUT_S = 30.0
OVERHEAD_MIB = 128
"""Memory of sentry, gofer and the launcher beside the guest's own, which the same cgroup counts."""
OVERHEAD_PROCESS_COUNT = 512
"""Host threads of sentry and gofer; the guest's own processes are bounded below."""

log = get_log("gvisor")


class GvisorRuntime:
    """Implements runtimes.base.Runtime."""

    name = RuntimeName.GVISOR
    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, *, runsc: Path, state_dir: Path, instance: str) -> None:
        self._runsc = runsc
        self._root = state_dir / "runsc"
        self._machines = OciMachines(state_dir, CgroupTree(f"firebrick-{instance}-gvisor"))
        self._flags: tuple[str, ...] | None = None

    async def start(self, spec: MachineSpec) -> MachineStatus:
        try:
            pid = await self._start(spec)
            self._machines.keep(spec.machine_id, pid)
        except (OSError, CommandFailed, ValueError) as exc:
            await self._undo(spec.machine_id)
            raise RuntimeFailed(
                f"The machine {spec.machine_id} could not be started with gVisor.", detail=str(exc)
            ) from exc
        except asyncio.CancelledError:
            await asyncio.shield(self._undo(spec.machine_id))
            raise
        return MachineStatus(machine_id=spec.machine_id, is_running=True, pid=pid)

    async def _start(self, spec: MachineSpec) -> int:
        bundle, meminfo, pid_file = await asyncio.to_thread(self._write, spec)
        flags = await self._common_flags()
        launch = [
            *[str(self._runsc), *flags, "run", "--detach", f"--pid-file={pid_file}", f"--bundle={bundle}"],
            spec.machine_id,
        ]
        wrapped = launch_argv(launch, meminfo, self._machines.cgroups.directories(spec.machine_id))
        with open_console(spec.directory) as console:
            status = await run_leaving_children(wrapped, output=console, timeout_s=START_TIMEOUT_S)
            if status != 0:
                raise CommandFailed(launch, status, console_tail(console))
        return int(await asyncio.to_thread(pid_file.read_text))

    def _write(self, spec: MachineSpec) -> tuple[Path, Path, Path]:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._machines.create_cgroup(
            spec.machine_id, spec.limits, overhead_mib=OVERHEAD_MIB, overhead_count=OVERHEAD_PROCESS_COUNT
        )
        bundle = write_bundle(spec.directory, gvisor_config(spec))
        meminfo = spec.directory / "meminfo"
        meminfo.write_text(f"MemTotal: {spec.limits.memory_mib * 1024} kB\n")
        return bundle, meminfo, spec.directory / "pid"

    async def _common_flags(self) -> tuple[str, ...]:
        """Flags that this runsc knows; older releases lack some."""
        if self._flags is None:
            offered = await run([self._runsc, "flags"], check=False)
            self._flags = runsc_flags(offered.stdout + offered.stderr, self._root)
        return self._flags

    async def _undo(self, machine_id: MachineId) -> None:
        try:
            await self.destroy(machine_id)
        except FirebrickError as exc:
            # `recover` finds it by its cgroup.
            log.error("machine.start_undo_failed", machine_id=machine_id, reason=exc.message, detail=exc.detail)

    async def destroy(self, machine_id: MachineId) -> None:
        await self._machines.kill(machine_id)
        try:
            await asyncio.to_thread(self._remove_files, machine_id)
            await self._machines.forget(machine_id)
        except OSError as exc:
            raise RuntimeFailed(
                f"What is left of the machine {machine_id} could not be removed.", detail=str(exc)
            ) from exc

    def _remove_files(self, machine_id: MachineId) -> None:
        """What runsc keeps: state, lock and control socket, all with the id in their names."""
        for path in self._root.glob(f"*{machine_id}*"):
            path.unlink(missing_ok=True)

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


def gvisor_config(spec: MachineSpec) -> Json:
    """The OCI configuration of a gVisor machine."""
    mounts: list[Json] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777", "size=64m"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec", "nodev"]},
        # runsc puts a tmpfs on an empty /tmp, and what a guest writes there would count as its memory.
        bind_mount("/tmp", spec.rootfs / "tmp", "rw", "nosuid", "nodev"),
    ]
    pids = {"pids": {"limit": spec.limits.process_count}}
    return oci_config(spec, mounts=mounts, linux={"resources": pids})


def runsc_flags(offered: str, root: Path) -> tuple[str, ...]:
    """Choose from what `runsc flags` tells."""
    wanted = {
        "root": str(root),
        "platform": "systrap" if "systrap" in offered else "ptrace",
        "network": "sandbox",
        # The rootfs is an overlay already, and its upper must hold every byte that is written.
        "overlay2": "none",
        # The cgroup is ours, and runsc does not understand every layout.
        "ignore-cgroups": "true",
        "host-uds": "none",
    }
    known = set(re.findall(r"^\s+-{1,2}([a-z0-9-]+)", offered, re.MULTILINE))
    return tuple(f"--{name}={value}" for name, value in wanted.items() if not known or name in known)


def launch_argv(launch: list[str], meminfo: Path, cgroups: tuple[Path, ...]) -> list[str]:
    """The command around runsc: a mount namespace of its own, in the machine's cgroups.

    The cgroups are joined first, so that nothing of the machine ever runs outside them. The namespace is a slave
    of the host's: a private one would keep removed slots' namespaces alive.
    """
    joins = [f"echo 0 > {shlex.quote(str(directory / 'cgroup.procs'))}" for directory in cgroups]
    mounts = [
        "mount -t tmpfs -o size=4k,ro tmpfs /proc/sys/net",
        f"mount --bind {shlex.quote(str(meminfo))} /proc/meminfo",
    ]
    script = " && ".join([*joins, *mounts, f"exec {shlex.join(launch)}"])
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script]
