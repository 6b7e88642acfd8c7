"""Prove each runtime by running a program in it, with a deadline: that its tool is installed proves nothing.

The program is the host's own `tail`, with its libraries, in a throw-away image: no template is needed. Its disk is
cloned and it is started, heard and destroyed by the very drivers that sandboxes use, so what is proven is what
sandboxes get: cgroups, user namespace with shifted owners, seccomp, a network namespace made before, the console.
"""

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from firebrick.config import Config
from firebrick.doctor.host_reading import read_host
from firebrick.doctor.result import ProbeResult, ProbeStatus
from firebrick.doctor.virtualisation import Virtualisation, kind_of
from firebrick.linux import netns
from firebrick.linux.erofs import mkfs_command
from firebrick.linux.process import CommandFailed, run
from firebrick.model.errors import FirebrickError
from firebrick.model.ids import new_machine_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.rootfs.base import Rootfs
from firebrick.rootfs.overlay import OverlayRootfs
from firebrick.runtimes.base import AGENT_MOUNT, CONSOLE_NAME, Capability, MachineSpec, Runtime
from firebrick.runtimes.console import console_tail, open_console
from firebrick.runtimes.container.driver import ContainerRuntime
from firebrick.runtimes.firecracker.driver import FirecrackerRuntime
from firebrick.runtimes.firecracker.plan import Tools
from firebrick.runtimes.gvisor.driver import GvisorRuntime

DEADLINE_S = 20.0
BOOT_DEADLINE_S = 60.0
"""A guest boots in a second, on nested virtualisation in a few, in emulation in twenty."""
ID_SHIFT = 0x30000000
KVM = Path("/dev/kvm")
PROOF = "a program has run"

_DIRECTORIES = ("proc", "dev", "sys", "tmp", AGENT_MOUNT.strip("/"))
_LIMITS = Limits(millicpu=1000, memory_mib=128, disk_mib=16, process_count=64)
_POLL_S = 0.005

_MakeDriver = Callable[[Path, str], Runtime]


async def probe_gvisor(runsc: Path, *, patience: float = 1.0) -> ProbeResult:
    """Run a program under gVisor."""

    def driver(state_dir: Path, instance: str) -> Runtime:
        return GvisorRuntime(runsc=runsc, state_dir=state_dir, instance=instance)

    return await _probe(RuntimeName.GVISOR, runsc, driver, deadline_s=DEADLINE_S * patience)


async def probe_container(binary: Path, *, patience: float = 1.0) -> ProbeResult:
    """Run a program in a container."""

    def driver(state_dir: Path, instance: str) -> Runtime:
        return ContainerRuntime(binary=binary, state_dir=state_dir, instance=instance)

    return await _probe(RuntimeName.CONTAINER, binary, driver, deadline_s=DEADLINE_S * patience)


async def probe_firecracker(tools: Tools, *, patience: float = 1.0) -> ProbeResult:
    """Boot a guest: a device file proves nothing, for on some machines no ordinary guest boots (see
    docs/compatibility/firecracker.md), and only time tells."""
    if not KVM.exists():
        return await probe_no_firecracker()

    def driver(state_dir: Path, instance: str) -> Runtime:
        return FirecrackerRuntime(
            tools=tools, state_dir=state_dir, instance=instance, start_timeout_s=BOOT_DEADLINE_S * patience
        )  # fmt: skip

    return await _probe(RuntimeName.FIRECRACKER, tools.firecracker, driver, deadline_s=BOOT_DEADLINE_S * patience)


async def probe_microvms(config: Config, tools: Tools) -> ProbeResult:
    """As `probe_firecracker`, but where nobody asked for microVMs and KVM is of the kind that boots no ordinary guest,
    that is told at once and not found out for a minute, at every `up`."""
    if config.runtime != RuntimeName.FIRECRACKER and kind_of(read_host(config)) is Virtualisation.PAGE_TABLE:
        return ProbeResult(
            name=RuntimeName.FIRECRACKER,
            status=ProbeStatus.ABSENT,
            summary=f"{Virtualisation.PAGE_TABLE} boots no ordinary guest: not tried",
            why="See `virtualisation`. `firebrick setup firecracker` tries it all the same.",
        )
    return await probe_firecracker(tools, patience=config.patience)


async def probe_no_firecracker() -> ProbeResult:
    """What can be told without booting anything."""
    if KVM.exists():
        return ProbeResult(
            name=RuntimeName.FIRECRACKER,
            status=ProbeStatus.ABSENT,
            summary="/dev/kvm is there; whether a guest boots on it is not known",
            why="Only a guest that boots proves KVM; `firebrick setup firecracker` gets what is needed, and boots one.",
        )
    return ProbeResult(
        name=RuntimeName.FIRECRACKER, status=ProbeStatus.ABSENT, summary="no /dev/kvm; microVMs need it",
        why="See `virtualisation`.",
    )  # fmt: skip


async def _probe(name: RuntimeName, program: Path, driver: _MakeDriver, *, deadline_s: float) -> ProbeResult:
    if os.geteuid() != 0:
        why = "Only root can try it."
        return ProbeResult(name=name, status=ProbeStatus.FAIL, summary="not probed", why=why)
    try:
        async with asyncio.timeout(deadline_s):
            version = await _version(program, deadline_s)
            await _run_once(driver)
    except TimeoutError:
        return _failed(name, program, f"Nothing was heard of it within {deadline_s:.0f} s.")
    except FirebrickError as exc:
        return _failed(name, program, f"{exc.message} {_last_line(exc.detail)}".strip())
    except (CommandFailed, OSError) as exc:
        said = exc.stderr if isinstance(exc, CommandFailed) else str(exc)
        return _failed(name, program, _last_line(said) or f"{program} said nothing.")
    return ProbeResult(name=name, status=ProbeStatus.OK, summary=f"{version}: {PROOF}")


async def _run_once(make: _MakeDriver) -> None:
    """Raises: FirebrickError, CommandFailed, OSError; whatever it made is gone then too."""
    base = Path(tempfile.mkdtemp(prefix="firebrick-probe-", dir="/var/tmp"))
    instance = f"probe{secrets.token_hex(3)}"
    try:
        base.chmod(0o711)
        driver = make(base / "state", instance)
        shift = ID_SHIFT if Capability.USER_NAMESPACE in driver.capabilities else 0
        is_mounted = Capability.OWN_KERNEL not in driver.capabilities
        async with _disk(base, instance, shift, is_mounted=is_mounted) as rootfs, _network() as place:
            spec = _spec(base, rootfs, place)
            try:
                await driver.start(spec)
                await _hear(spec.directory)
            finally:
                await driver.destroy(spec.machine_id)
                await driver.close()
    finally:
        await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)


@asynccontextmanager
async def _disk(base: Path, instance: str, shift: int, *, is_mounted: bool) -> AsyncIterator[Rootfs]:
    """An image with one program, and a clone of it."""
    tail = Path(shutil.which("tail") or "/usr/bin/tail").resolve()
    libraries = await run(["ldd", tail], check=False)
    await asyncio.to_thread(_fill, base / "tree", tail, libraries.stdout)
    await run(mkfs_command(base / "image", base / "tree", "--all-root"))
    disks = OverlayRootfs(root=base / "disks", instance=instance, pool_size=0, reserve_mib=_LIMITS.disk_mib)
    machine_id = new_machine_id()
    await disks.recover(frozenset())
    try:
        yield await disks.prepare(
            machine_id, base / "image", disk_mib=_LIMITS.disk_mib, id_shift=shift, is_mounted=is_mounted
        )  # fmt: skip
    finally:
        await disks.remove(machine_id)
        await disks.close()


def _fill(tree: Path, program: Path, ldd: str) -> None:
    for name in _DIRECTORIES:
        (tree / name).mkdir(parents=True)
    (tree / "proof").write_text(f"{PROOF}\n")
    shutil.copy(program, tree / "program")
    for word in ldd.split():
        library = Path(word)
        if library.is_absolute() and library.is_file():
            copy = tree / word.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library.resolve(), copy)


@asynccontextmanager
async def _network() -> AsyncIterator[Path]:
    """A network namespace without a name: slots may not exist yet."""

    def make() -> int:
        netns.unshare()
        return netns.open_own()

    descriptor = await netns.in_own_thread(make)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _spec(base: Path, rootfs: Rootfs, place: Path) -> MachineSpec:
    (base / "agent").mkdir(mode=0o755)
    (base / "machine").mkdir(mode=0o711)
    os.mkfifo(base / "machine" / CONSOLE_NAME, 0o600)
    return MachineSpec(
        machine_id=new_machine_id(),
        directory=base / "machine",
        rootfs=rootfs.path,
        image=rootfs.image,
        disk=rootfs.disk,
        disk_file=rootfs.disk_file,
        user_id=ID_SHIFT,
        id_shift=rootfs.id_shift,
        agent_dir=base / "agent",
        netns=place,
        argv=("/program", "-f", "/proof"),
        env={"PATH": "/"},
        hostname="probe",
        limits=_LIMITS,
    )


async def _hear(directory: Path) -> None:
    """Return when the program has said what it was to say."""
    heard = ""
    with open_console(directory):
        while PROOF not in heard:
            heard += console_tail(directory)
            await asyncio.sleep(_POLL_S)


async def _version(program: Path, deadline_s: float) -> str:
    said = await run([program, "--version"], timeout_s=deadline_s)
    return (said.stdout or said.stderr).partition("\n")[0].strip() or program.name


def _failed(name: RuntimeName, program: Path, why: str) -> ProbeResult:
    summary = f"{program.name} does not run a program here"
    return ProbeResult(name=name, status=ProbeStatus.FAIL, summary=summary, why=why)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else ""
