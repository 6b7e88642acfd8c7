"""A bench for runtimes: rootfs trees, network places and a guest that runs what it is asked, for real machines.

The guest's first process is a server of a few lines, in place of the guest agent: it answers each connection with
what a shell command printed. It needs nothing but Python.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from firebrick.linux.cgroup import CGROUP_ROOT
from firebrick.linux.netns import write_sysctl
from firebrick.linux.process import run
from firebrick.model.ids import MachineId, new_machine_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.network.maker import GUEST_MAC, LINK_MTU_BYTES
from firebrick.rootfs.disks import CloneKind
from firebrick.rootfs.overlay import OverlayRootfs
from firebrick.runtimes.base import CONSOLE_NAME, Capability, MachineSpec, Runtime
from firebrick.runtimes.container.driver import ContainerRuntime
from firebrick.runtimes.firecracker.driver import FirecrackerRuntime
from firebrick.runtimes.firecracker.plan import Tools
from firebrick.runtimes.gvisor.driver import GvisorRuntime
from tests.support.instance import CACHE
from tests.support.lab import call_in
from tests.support.leaks import LeakCheck
from tests.support.minbase import minbase_image
from tests.support.rootfs import make_disks
from tests.support.runtimes import no_microvms
from tests.support.wait import wait_for

PORT = 8000
NAMES = {"gvisor": RuntimeName.GVISOR, "firecracker": RuntimeName.FIRECRACKER, "monitor": RuntimeName.FIRECRACKER}
INSIDE, OUTSIDE = "169.254.0.21", "169.254.0.22"
SHIFT_BASE, SHIFT_STEP = 1_000_000_000, 65_536
LIMITS = Limits(millicpu=2000, memory_mib=192, disk_mib=256, process_count=128)
ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}

SERVER = f"""
import os, socket, subprocess, threading
def answer(connection):
    with connection, connection.makefile("rb") as lines:
        user, command = lines.readline().decode().strip(), lines.read().decode()
        ids = dict(user=1000, group=1000, extra_groups=[]) if user == "user" else {{}}
        done = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **ids)
        connection.sendall(b"%d\\n" % done.returncode + done.stdout)
server = socket.create_server(("0.0.0.0", {PORT}))
while True:
    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()
"""
SERVE = ("/usr/bin/python3", "-c", SERVER)


@dataclass(slots=True)
class RuntimeBench:
    """One driver and all that its machines need. `make` gives a new driver over the same state, as after a restart."""

    name: RuntimeName
    directory: Path
    disks: OverlayRootfs
    make: Callable[..., Runtime]
    instance: str
    runtime: Runtime
    _made: int = 0
    _specs: dict[MachineId, MachineSpec] = field(default_factory=dict)
    _drivers: list[Runtime] = field(default_factory=list)

    def restart(self, **options: Any) -> Runtime:
        """Forget the driver without closing it, and make another: what a kill -9 comes to."""
        self._drivers.append(self.runtime)
        self.runtime = self.make(**options)
        return self.runtime

    async def spec(
        self, *argv: str, limits: Limits = LIMITS, kept_disk: Path | None = None, **changes: Any
    ) -> MachineSpec:
        """A machine that serves `run`, or runs `argv`. `kept_disk`: it begins with a copy of that."""
        self._made += 1
        machine_id = new_machine_id()
        shift = SHIFT_BASE + self._made * SHIFT_STEP if Capability.USER_NAMESPACE in self.runtime.capabilities else 0
        directory = self.directory / "machines" / machine_id
        directory.mkdir(mode=0o711, parents=True)
        os.mkfifo(directory / CONSOLE_NAME, 0o600)
        disk_mib = limits.disk_mib
        rootfs = await self.disks.prepare(
            machine_id, minbase_image(), disk_mib=disk_mib, id_shift=shift, disk=kept_disk,
            is_mounted=Capability.OWN_KERNEL not in self.runtime.capabilities,
        )  # fmt: skip
        spec = MachineSpec(
            machine_id=machine_id,
            directory=directory,
            rootfs=rootfs.path,
            image=rootfs.image,
            disk=rootfs.disk,
            disk_file=rootfs.disk_file,
            user_id=SHIFT_BASE + self._made * SHIFT_STEP,
            agent_dir=self.directory / "agent",
            netns=self._place(),
            argv=argv or SERVE,
            env=changes.pop("env", ENV),
            hostname="sandbox",
            limits=limits,
            id_shift=shift,
            **changes,
        )
        self._specs[machine_id] = spec
        return spec

    async def serving(self, **changes: Any) -> MachineSpec:
        """A started machine that answers."""
        spec = await self.spec(**changes)
        await self.runtime.start(spec)
        await self.ready(spec)
        return spec

    async def ready(self, spec: MachineSpec) -> None:
        await wait_for(lambda: self.answers(spec), status=lambda: self.said(spec))

    async def saved(self, spec: MachineSpec, name: str = "save") -> Path:
        """Freeze a machine and save its memory, with its disk beside it; it stays frozen. The save's directory."""
        directory = self.directory / name
        directory.mkdir()
        await self.runtime.freeze(spec.machine_id)  # type: ignore[attr-defined]
        await self.runtime.save_memory(spec.machine_id, directory)  # type: ignore[attr-defined]
        await self.disks.capture(spec.machine_id, self.directory / f"{name}.disk")
        return directory

    async def restored(self, save: Path, **changes: Any) -> MachineSpec:
        """Another machine that goes on from a save, and answers."""
        spec = await self.spec(kept_disk=save.with_suffix(".disk"), memory=save, **changes)
        await self.runtime.start(spec)
        await wait_for(lambda: self._answers_yet(spec), status=lambda: self.said(spec))
        return spec

    async def _answers_yet(self, spec: MachineSpec) -> bool:
        """Fails the test at once, and says why, when it has ended instead."""
        if await self.answers(spec):
            return True
        status = await self.runtime.inspect(spec.machine_id)
        assert status.is_running, f"{await self.runtime.wait_exit(spec.machine_id)} {self.said(spec)}"
        return False

    async def answers(self, spec: MachineSpec) -> bool:
        try:
            return await self.run(spec, "echo up") == (0, "up\n")
        except (OSError, ValueError):
            return False

    async def run(self, spec: MachineSpec, command: str, *, user: str = "root") -> tuple[int, str]:
        """Run a shell command inside; its exit status and output. Raises OSError when nobody answers."""
        return await asyncio.to_thread(self._run, spec, command, user, 30)

    async def run_for(self, spec: MachineSpec, command: str, *, timeout_s: float) -> tuple[int, str]:
        """`run` of one that takes long."""
        return await asyncio.to_thread(self._run, spec, command, "root", timeout_s)

    def _run(self, spec: MachineSpec, command: str, user: str, timeout_s: float) -> tuple[int, str]:
        def connect() -> socket.socket:
            return socket.create_connection((INSIDE, PORT), timeout=timeout_s)

        with call_in(_outer(spec.netns), connect) as connection:
            connection.sendall(f"{user}\n{command}".encode())
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        status, _, output = answer.decode(errors="replace").partition("\n")
        if not status:
            raise ConnectionResetError("the guest ended while it was asked")
        return int(status), output

    def said(self, spec: MachineSpec) -> str:
        """What is in the console now."""
        descriptor = os.open(spec.directory / CONSOLE_NAME, os.O_RDWR | os.O_NONBLOCK)
        try:
            return os.read(descriptor, 65536).decode(errors="replace")
        except BlockingIOError:
            return ""
        finally:
            os.close(descriptor)

    def runtime_cgroups(self, spec: MachineSpec) -> list[Path]:
        """Every cgroup of the machine's, in whichever hierarchy."""
        found = CGROUP_ROOT.glob(f"**/firebrick-{self.instance}-*/{spec.machine_id}")
        return list(found)

    def left_of(self, spec: MachineSpec) -> list[str]:
        """Cgroups, records and the runtime's state of the machine: nothing, once it is destroyed."""
        states = [self.directory / name for name in ("gvisor", "container", "firecracker")]
        kept = [path for state in states for path in state.rglob(f"*{spec.machine_id}*")]
        return sorted(map(str, [*kept, *self.runtime_cgroups(spec)]))

    def pids(self, spec: MachineSpec) -> set[int]:
        """Every process of the machine's on the host."""
        found = [directory / "cgroup.procs" for directory in self.runtime_cgroups(spec)]
        return {int(word) for path in found if path.exists() for word in path.read_text().split()}

    async def close(self) -> None:
        for machine_id in self._specs:
            await self.runtime.destroy(machine_id)
            await self.disks.remove(machine_id)
        await self.runtime.close()
        for driver in self._drivers:
            await driver.close()
        for spec in self._specs.values():
            for place in (spec.netns, _outer(spec.netns)):
                await run(["ip", "netns", "del", place.name])

    def _place(self) -> Path:
        name = f"fb-{self.instance}-{self._made}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "netns", "add", f"{name}-out"], check=True)
        mtu = LINK_MTU_BYTES
        batch = f"""
            link add eth0 address {GUEST_MAC} mtu {mtu} type veth peer name out0 mtu {mtu} netns {name}-out
            addr add {INSIDE}/30 dev eth0
            link set lo up
            link set eth0 up
            route add default via {OUTSIDE}
        """
        outer = f"addr add {OUTSIDE}/30 dev out0\nlink set out0 up\nlink set lo up\n"
        # The peer must be up before a route over the link can be used, and made before it can be up.
        first, rest = batch.strip().split("\n", 1)
        subprocess.run(["ip", "-n", name, "-batch", "-"], input=first + "\n", text=True, check=True)
        subprocess.run(["ip", "-n", f"{name}-out", "-batch", "-"], input=outer, text=True, check=True)
        subprocess.run(["ip", "-n", name, "-batch", "-"], input=rest + "\n", text=True, check=True)
        place = Path("/run/netns") / name
        call_in(place, lambda: write_sysctl("ipv4/ip_unprivileged_port_start", "0"))
        return place


def _outer(netns: Path) -> Path:
    return netns.with_name(f"{netns.name}-out")


def find_runsc() -> Path | None:
    own = CACHE / "tools" / "runsc"
    found = shutil.which("runsc")
    return own if own.exists() else Path(found) if found else None


def find_oci(program: str | None = None) -> Path | None:
    names = (program,) if program else ("runc", "crun")
    return next((Path(found) for name in names if (found := shutil.which(name))), None)


def driver_maker(kind: str, state_dir: Path, instance: str) -> Callable[..., Runtime]:
    """Makes drivers of one kind: gvisor, runc, crun, firecracker, or monitor: Firecracker's without a guest that need
    boot. Skips the test, loudly, where its program is missing."""
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: needs root (run the tests with sudo)")
    if kind in ("firecracker", "monitor"):
        tools = Tools(directory=CACHE / "tools" / "firecracker")
        if kind == "firecracker" and (reason := no_microvms(tools)) is not None:
            pytest.skip(f"NOT RUN: {reason}")
        return lambda **options: FirecrackerRuntime(
            **{"tools": tools, "state_dir": state_dir / "firecracker", "instance": instance} | options
        )
    if kind == "gvisor":
        if (runsc := find_runsc()) is None:
            pytest.skip("NOT RUN: no runsc is installed (`firebrick up` installs one)")
        return lambda **options: GvisorRuntime(
            **{"runsc": runsc, "state_dir": state_dir / "gvisor", "instance": instance} | options
        )
    if (binary := find_oci(kind)) is None:
        pytest.skip(f"NOT RUN: {kind} is not installed")
    return lambda **options: ContainerRuntime(
        **{"binary": binary, "state_dir": state_dir / "container", "instance": instance} | options
    )


@contextlib.asynccontextmanager
async def runtime_bench(
    kind: str, no_leaks: LeakCheck, *, clones: CloneKind = CloneKind.SPARSE
) -> AsyncIterator[RuntimeBench]:
    """A bench; at the end its machines are destroyed, and whatever bears its name is a leak."""
    instance = "t" + secrets.token_hex(2)[:3]
    directory = Path(tempfile.mkdtemp(prefix=f"firebrick-bench-{instance}-", dir="/var/tmp"))
    directory.chmod(0o711)
    (directory / "agent").mkdir(mode=0o755)
    (directory / "agent" / "mark").write_text("agent\n")
    try:
        make = driver_maker(kind, directory, instance)
        no_leaks.watch(f"-{instance}-", directories=(directory,))
        root = directory / "disks"
        disks = OverlayRootfs(
            root=root, instance=instance, disks=make_disks(clones, root), pool_size=0, reserve_mib=64
        )  # fmt: skip
        await disks.recover(frozenset())
        try:
            bench = RuntimeBench(
                name=NAMES.get(kind, RuntimeName.CONTAINER),
                directory=directory, disks=disks, make=make, instance=instance, runtime=make(),
            )  # fmt: skip
            try:
                yield bench
            finally:
                await bench.close()
        finally:
            await disks.close()
    finally:
        shutil.rmtree(directory)
