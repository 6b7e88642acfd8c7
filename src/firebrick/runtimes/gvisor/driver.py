"""gVisor: a user-space kernel (the sentry) between the guest and the host's.

`runsc run --detach` starts sentry and gofer in the machine's cgroup and ends; the sentry's end is the machine's.
From then on no `runsc` command is needed: the guest is reached over the network, killed through its cgroup, and
what runsc remembers of it are files that bear its id. That matters because runsc's own delete takes over a
second, and because runsc takes any unique prefix of an id for the id (so all ids have one length).

The sentry reads the template's image by itself and keeps what the machine writes in a file without a name on the
machine's own bounded disk. Going through the host's overlay instead is half as fast, knows no user xattrs, and fails
on the attributes of symbolic links, so that `ls -l /` ends with an error (as of 2024-07).

Releases before 2025 ignore the setuid bit, so that sudo could do nothing; over the image's they get one of ours, which
asks the guest agent (ADR 4). Later ones honour it when told to.

runsc starts in a mount namespace of its own for two reasons. The sentry takes the memory that it reports inside
from /proc/meminfo. And releases before 2024-08 mistake every network namespace for the host's on kernels that show
net.core.rmem_default in all of them; an empty tmpfs over /proc/sys/net mends that.
"""

import asyncio
import re
import stat
from collections.abc import Callable
from pathlib import Path

from firebrick.linux.cgroup import CgroupLimits
from firebrick.linux.mount import MS_RDONLY, bind, mount
from firebrick.linux.netns import in_own_thread, unshare
from firebrick.linux.process import CommandFailed, run
from firebrick.model.ids import MachineId
from firebrick.model.machine import Limits, MachineExit, RuntimeName, Usage
from firebrick.runtimes.base import (
    SUDO_NAME,
    SUDO_SOCKET,
    SUDO_VARIABLE,
    Capability,
    MachineSpec,
    MachineStatus,
    RuntimeFailed,
)
from firebrick.runtimes.machines import START_TIMEOUT_S, DetachedMachines, StartPlan
from firebrick.runtimes.oci import (
    CAPABILITIES,
    OPEN_FILES_COUNT,
    SHARED_MEMORY_MIB,
    Json,
    bind_mount,
    oci_config,
    write_bundle,
)

OVERHEAD_MIB = 192
"""Memory of sentry and gofer beside the guest's own, which the same cgroup counts."""
OVERHEAD_THREAD_COUNT = 512
"""Host threads of sentry and gofer."""
MIN_PROCESS_COUNT = 128
THREADS_PER_PROCESS_COUNT = 2
"""A guest process is a thread of its own and one of the sentry's. The guest's own limit is RLIMIT_NPROC, which
the sentry holds per user; this one is for a sentry that was taken over."""

OOM_STATUSES = frozenset({-9, 1})
"""The kernel kills the sentry, or the process of the host that a guest process runs in; the sentry then ends that
guest process with 1."""

HONOURS_SETUID = "allow-suid"
"""The flag of a runsc that can run setuid programs as their owner. One without it never does."""

_SUDO = "usr/bin/sudo"
_HOST_SYSCTL = Path("/proc/sys/net/core/rmem_default")


class GvisorRuntime:
    """Implements runtimes.base.Runtime and Freezer.

    Args:
        runsc: the binary.
        state_dir: ours alone; kept over restarts.
        instance: in the names of our cgroups.
        platform: of runsc; None takes systrap where the binary has it, else ptrace.
    """

    name = RuntimeName.GVISOR
    capabilities: frozenset[Capability] = frozenset({Capability.FREEZE, Capability.WRITES_INSIDE})

    def __init__(
        self,
        *,
        runsc: Path,
        state_dir: Path,
        instance: str,
        platform: str | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._runsc = runsc
        self._root = state_dir / "runsc"
        self._platform = platform
        self._flags: tuple[str, ...] | None = None
        self._known: frozenset[str] = frozenset()
        self._hides_sysctl = False
        self._machines = DetachedMachines(
            state_dir=state_dir,
            runtime_root=self._root,
            parent=f"firebrick-{instance}-gvisor",
            oom_statuses=OOM_STATUSES,
            start_timeout_s=start_timeout_s,
        )

    async def start(self, spec: MachineSpec) -> MachineStatus:
        flags = await self._common_flags()
        return await self._machines.start(spec, host_limits(spec.limits), lambda: self._plan(spec, flags))

    def _plan(self, spec: MachineSpec, flags: tuple[str, ...]) -> StartPlan:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        bundle = write_bundle(spec.directory, gvisor_config(spec, honours_setuid=HONOURS_SETUID in self._known))
        meminfo = spec.directory / "meminfo"
        meminfo.write_text(f"MemTotal: {spec.limits.memory_mib * 1024} kB\n")
        pid_file = spec.directory / "pid"
        flags = (*flags, *overlay_flags(spec, self._known))
        argv = [str(self._runsc), *flags, "run", "--detach", f"--pid-file={pid_file}", f"--bundle={bundle}"]
        mounts = runsc_mounts(meminfo, hides_sysctl=self._hides_sysctl)
        return StartPlan(argv=[*argv, spec.machine_id], pid_file=pid_file, joins_cgroup=True, mounts=mounts)

    async def _common_flags(self) -> tuple[str, ...]:
        """Flags that this runsc knows; asked once, for older releases lack some. Raises RuntimeFailed."""
        if self._flags is None:
            try:
                offered = await run([self._runsc, "flags"], check=False, timeout_s=START_TIMEOUT_S)
            except CommandFailed as exc:
                raise RuntimeFailed(f"{self._runsc} does not start.", detail=str(exc)) from exc
            text = offered.stdout + offered.stderr
            self._known = known_flags(text)
            if "root" not in self._known:
                raise RuntimeFailed(f"{self._runsc} is not runsc.", detail=text)
            platform = self._platform or ("systrap" if "systrap" in text else "ptrace")
            self._hides_sysctl = await in_own_thread(shows_host_sysctl)
            self._flags = runsc_flags(self._known, self._root, platform)
        return self._flags

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


def host_limits(limits: Limits) -> CgroupLimits:
    """What the host grants for a guest with these limits."""
    return CgroupLimits(
        millicpu=limits.millicpu,
        memory_bytes=(limits.memory_mib + OVERHEAD_MIB) << 20,
        process_count=limits.process_count * THREADS_PER_PROCESS_COUNT + OVERHEAD_THREAD_COUNT,
    )


def guest_process_count(limits: Limits) -> int:
    """The most processes of one user of the guest: no more than fit its memory, or forking without end would end the
    sentry. A process that does nothing costs sentry and guest 0.6 MiB together."""
    return min(limits.process_count, max(MIN_PROCESS_COUNT, limits.memory_mib))


def gvisor_config(spec: MachineSpec, *, honours_setuid: bool = False) -> Json:
    """The OCI configuration of a gVisor machine."""
    shm_options = ["nosuid", "nodev", "mode=1777", f"size={SHARED_MEMORY_MIB}m"]
    mounts: list[Json] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": shm_options},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec", "nodev"]},
    ]
    # runsc puts a tmpfs on an empty /tmp, and what a guest writes there would count as its memory. A guest that wrote
    # this tree before may have made it a link, which would be followed on the host.
    tmp = spec.rootfs / "tmp"
    if tmp.is_dir() and not tmp.is_symlink():
        mounts.append(bind_mount("/tmp", tmp, "rw", "nosuid", "nodev"))
    has_own_sudo = not honours_setuid and needs_sudo(spec)
    if has_own_sudo:
        mounts.append(bind_mount(f"/{_SUDO}", spec.agent_dir / SUDO_NAME, "ro", "nosuid", "nodev"))
    config = oci_config(
        spec,
        mounts=mounts,
        # Over processes of the sentry's own making it is harmless, and lets root trace other users' programs.
        capabilities=(*CAPABILITIES, "CAP_SYS_PTRACE"),
        rlimits={"RLIMIT_NOFILE": OPEN_FILES_COUNT, "RLIMIT_NPROC": guest_process_count(spec.limits)},
        linux={},
    )
    if has_own_sudo:
        config["process"]["env"].append(f"{SUDO_VARIABLE}={SUDO_SOCKET}")
    # The sentry kills nothing when memory ends, it is killed: the guest agent watches out for it.
    config["process"]["env"].append(f"FIREBRICK_MEMORY_GUARD_BYTES={host_limits(spec.limits).memory_bytes}")
    if spec.image is not None and spec.disk is not None:
        config["annotations"] = {
            "dev.gvisor.spec.rootfs.source": str(spec.image),
            "dev.gvisor.spec.rootfs.type": "erofs",
            "dev.gvisor.spec.rootfs.overlay": f"dir={spec.disk}",
        }
    return config


def needs_sudo(spec: MachineSpec) -> bool:
    """Whether the image has a setuid sudo that ours can stand in for."""
    try:
        # Of a link nothing is taken: in a tree that a guest has written it may lead to the host's.
        found = (spec.rootfs / _SUDO).lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and bool(found.st_mode & stat.S_ISUID) and (spec.agent_dir / SUDO_NAME).is_file()


def runsc_flags(known: frozenset[str], root: Path, platform: str) -> tuple[str, ...]:
    """The flags that are the same for all machines; one that this runsc does not know is left out."""
    wanted = {
        "root": str(root),
        "platform": platform,
        "network": "sandbox",
        # The agent's files and the few extra ones never change while a machine runs: no need to look again.
        "file-access-mounts": "exclusive",
        # The cgroup is ours, and runsc does not understand every layout.
        "ignore-cgroups": "true",
        HONOURS_SETUID: "true",
        "host-uds": "none",
        "host-fifo": "none",
    }
    return tuple(f"--{name}={value}" for name, value in wanted.items() if name in known)


def known_flags(offered: str) -> frozenset[str]:
    """The names in what `runsc flags` tells."""
    return frozenset(re.findall(r"^\s+-{1,2}([a-z0-9-]+)", offered, re.MULTILINE))


def overlay_flags(spec: MachineSpec, known: frozenset[str]) -> tuple[str, ...]:
    """Where the machine's writes go: to its own bounded disk, or through to `rootfs`, which is an overlay already."""
    if "overlay2" not in known:
        return ()
    return (f"--overlay2={'none' if spec.disk is None or spec.image is None else f'all:dir={spec.disk}'}",)


def runsc_mounts(meminfo: Path, *, hides_sysctl: bool) -> Callable[[], None]:
    """What runsc sees in its mount namespace in place of the host's."""

    def make() -> None:
        bind(meminfo, Path("/proc/meminfo"))
        if hides_sysctl:
            mount("none", _HOST_SYSCTL.parents[1], "tmpfs", flags=MS_RDONLY, options="size=4k")

    return make


def shows_host_sysctl() -> bool:
    """Whether a new network namespace shows what older releases take for the mark of the host's.

    Moves the calling thread into one. Raises OSError.
    """
    unshare()
    return _HOST_SYSCTL.exists()
