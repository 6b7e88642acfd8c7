"""Prove each runtime by running a program in it, with a deadline: that its tool is installed proves nothing.

The program is the host's own `true`, with its libraries, in a throw-away root: no template is needed. The
configuration is the real driver's, so what is proven is what sandboxes get: user namespace, seccomp, cgroups.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from firebrick.doctor.result import ProbeResult, ProbeStatus
from firebrick.linux.cgroup_tree import CgroupTree
from firebrick.linux.process import CommandFailed, run
from firebrick.model.ids import new_machine_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.runtimes.base import AGENT_MOUNT, MachineSpec
from firebrick.runtimes.container.driver import container_config, tool_command
from firebrick.runtimes.gvisor.driver import gvisor_config, launch_argv, runsc_flags
from firebrick.runtimes.oci import Json, write_bundle

DEADLINE_S = 20.0
ID_SHIFT = 0x30000000
KVM = Path("/dev/kvm")
_DIRECTORIES = ("proc", "dev", "sys", "tmp", AGENT_MOUNT.strip("/"))
_LIMITS = Limits(millicpu=1000, memory_mib=128, disk_mib=16, process_count=64)


async def probe_gvisor(runsc: Path) -> ProbeResult:
    """Run `true` under gVisor."""
    name = RuntimeName.GVISOR
    try:
        version = await _version(runsc)
        async with _bench(id_shift=0) as spec:
            bundle = await asyncio.to_thread(write_bundle, spec.directory, _own_network(gvisor_config(spec)))
            offered = await run([runsc, "flags"], check=False)
            flags = runsc_flags(offered.stdout + offered.stderr, spec.directory / "state")
            meminfo = spec.directory / "meminfo"
            meminfo.write_text(f"MemTotal: {spec.limits.memory_mib * 1024} kB\n")
            launch = [str(runsc), *flags, "run", f"--bundle={bundle}", spec.machine_id]
            await run(launch_argv(launch, meminfo, ()), timeout_s=DEADLINE_S)
    except (CommandFailed, OSError) as exc:
        return _failed(name, f"{runsc.name} does not run a program here", exc)
    platform = next(flag.partition("=")[2] for flag in flags if flag.startswith("--platform="))
    return ProbeResult(name=name, status=ProbeStatus.OK, summary=f"{version}, {platform}: ran a program")


async def probe_container(binary: Path) -> ProbeResult:
    """Run `true` in a container."""
    name = RuntimeName.CONTAINER
    cgroups = CgroupTree(f"firebrick-probe-{os.getpid()}", is_made_by_runtime=True)
    try:
        version = await _version(binary)
        async with _bench(id_shift=ID_SHIFT) as spec:
            can_limit_swap = cgroups.mounts.can_limit_swap
            config = container_config(
                spec, cgroup=f"/{cgroups.parent}/{spec.machine_id}", can_limit_swap=can_limit_swap
            )
            bundle = await asyncio.to_thread(write_bundle, spec.directory, _own_network(config))
            launch = [str(binary), "--root", str(spec.directory / "state"), "run", "--bundle", str(bundle)]
            try:
                await run(tool_command(binary, cgroups.mounts, [*launch, spec.machine_id]), timeout_s=DEADLINE_S)
            finally:
                await asyncio.to_thread(cgroups.remove, spec.machine_id)
                await asyncio.to_thread(cgroups.remove_parent)
    except (CommandFailed, OSError) as exc:
        return _failed(name, f"{binary.name} does not run a program here", exc)
    return ProbeResult(name=name, status=ProbeStatus.OK, summary=f"{version}: ran a program")


async def probe_kvm() -> ProbeResult:
    """Tell what is known of hardware virtualisation: a device file is no proof, only a guest that boots is."""
    if not KVM.exists():
        return ProbeResult(name="kvm", status=ProbeStatus.ABSENT, summary="no /dev/kvm; microVMs would need it")
    return ProbeResult(
        name="kvm",
        status=ProbeStatus.ABSENT,
        summary="/dev/kvm is there, which does not prove that a guest boots on it",
        why="This version has no firecracker runtime, and so boots none to find out.",
    )


@asynccontextmanager
async def _bench(*, id_shift: int) -> AsyncIterator[MachineSpec]:
    """A machine that is only `true`."""
    base = Path(tempfile.mkdtemp(prefix="firebrick-probe-", dir="/var/tmp"))
    try:
        base.chmod(0o711)
        true = Path(shutil.which("true") or "/bin/true").resolve()
        libraries = await run(["ldd", true], check=False)
        await asyncio.to_thread(_fill, base / "rootfs", true, libraries.stdout, id_shift)
        (base / "agent").mkdir(mode=0o755)
        (base / "machine").mkdir(mode=0o711)
        yield MachineSpec(
            machine_id=new_machine_id(),
            directory=base / "machine",
            rootfs=base / "rootfs",
            agent_dir=base / "agent",
            netns=base,
            argv=("/true",),
            env={"PATH": "/"},
            hostname="probe",
            limits=_LIMITS,
            id_shift=id_shift,
        )
    finally:
        await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)


def _fill(rootfs: Path, true: Path, ldd: str, owner: int) -> None:
    for name in _DIRECTORIES:
        (rootfs / name).mkdir(parents=True)
    shutil.copy(true, rootfs / "true")
    for word in ldd.split():
        library = Path(word)
        if library.is_absolute() and library.is_file():
            copy = rootfs / word.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library.resolve(), copy)
    for directory, _, files in os.walk(rootfs):
        os.chown(directory, owner, owner)
        for name in files:
            os.chown(Path(directory) / name, owner, owner)


def _own_network(config: Json) -> Json:
    """Slots may not exist yet: take a new network namespace."""
    namespaces = [item for item in config["linux"]["namespaces"] if item["type"] != "network"]
    linux = config["linux"] | {"namespaces": [*namespaces, {"type": "network"}]}
    return config | {"linux": linux}


async def _version(program: Path) -> str:
    done = await run([program, "--version"], timeout_s=DEADLINE_S)
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0].strip() if lines else program.name


def _failed(name: RuntimeName, summary: str, exc: Exception) -> ProbeResult:
    said = exc.stderr if isinstance(exc, CommandFailed) else str(exc)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return ProbeResult(
        name=name, status=ProbeStatus.FAIL, summary=summary, why=lines[-1][:300] if lines else "It said nothing."
    )
