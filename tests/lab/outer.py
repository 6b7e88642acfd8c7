"""One outer machine: a qemu process that emulates an AMD processor with SVM, so that /dev/kvm works in it.

Its folder holds its disk, its console, qemu's log and the socket by which qemu is told things. Nothing else is left
on this machine by it, and nothing of it outlives its process and its folder.
"""

import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.lab.channel import Channel
from tests.lab.emulator import Emulator
from tests.lab.inside.agent import PORT
from tests.lab.root import Build

CPU_COUNT = 2
BOOT_TIMEOUT_S = 300
QUIT_TIMEOUT_S = 20
CONNECT_ATTEMPTS = 100
READY = "LAB-READY"
DISK_PLACE = "place"
CPU = "EPYC-Rome,+svm"
KERNEL_LINE = "console=ttyS0 panic=-1 mitigations=off tsc=reliable no_timer_check net.ifnames=0 quiet"


class OuterFailed(Exception):
    """qemu or what runs in it did not do what it should; the message has its log and console."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an outer machine is to be.

    Fields:
        emulator: the qemu that it runs in.
        memory_mib: its memory; a saved state fits one size only.
        memory_file: the file that is its memory, or None for memory of its own.
        shares_memory: writes go to that file (to save a state) instead of staying private (to start from one).
        incoming: it waits for a saved state instead of booting.
        lan: group:port of the multicast group that is its private network, or "" for none.
    """

    build: Build
    emulator: Emulator
    memory_mib: int
    memory_file: Path | None = None
    shares_memory: bool = False
    incoming: bool = False
    lan: str = ""


def command(wanted: Wanted, folder: Path) -> list[str]:
    """qemu's command line. All but the memory's file and the network's other end must be equal for a state to fit."""
    memory = f"id=ram,size={wanted.memory_mib}M"
    if wanted.memory_file:
        share = "on" if wanted.shares_memory else "off"
        memory = f"memory-backend-file,{memory},mem-path={wanted.memory_file},share={share}"
    else:
        memory = f"memory-backend-ram,{memory}"
    lan = f"socket,id=lan,mcast={wanted.lan},localaddr=127.0.0.1" if wanted.lan else "hubport,id=lan,hubid=1"
    argv = [*wanted.emulator.words, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]
    argv += ["-machine", "q35,memory-backend=ram", "-accel", "tcg,thread=multi", "-cpu", CPU]
    argv += ["-smp", str(CPU_COUNT), "-m", f"{wanted.memory_mib}M", "-object", memory]
    argv += ["-kernel", str(wanted.build.kernel), "-initrd", f"{folder}/initramfs", "-append", KERNEL_LINE]
    # Nothing here survives a crash of this machine, nor need it: flushes would only cost.
    argv += ["-drive", f"file={folder}/disk.qcow2,if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap"]
    argv += ["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"]
    # A place for one disk that is put in while it runs.
    argv += ["-device", f"pcie-root-port,id={DISK_PLACE},chassis=1"]
    # Port 0: the kernel chooses one, and qemu tells which.
    argv += ["-netdev", f"user,id=wan,hostfwd=tcp:127.0.0.1:0-:{PORT}", "-device", "virtio-net-pci,netdev=wan"]
    argv += ["-netdev", lan, "-device", "virtio-net-pci,netdev=lan"]
    argv += ["-serial", f"file:{folder}/console", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    argv += ["-pidfile", f"{folder}/pid"]
    return argv + (["-incoming", "defer"] if wanted.incoming else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """A running outer machine, found again by its folder."""

    folder: Path
    build: Build

    @property
    def name(self) -> str:
        return self.folder.name

    @classmethod
    def start(cls, wanted: Wanted, folder: Path, backing: Path, backing_format: str) -> Self:
        """Start qemu on a new disk over `backing`.

        Effects: the folder and its files, one process in a session of its own. Undo: `stop`.
        """
        folder.mkdir(parents=True)
        disk = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(backing), "-F", backing_format]
        subprocess.run([*disk, str(folder / "disk.qcow2")], check=True)
        (folder / "initramfs").write_bytes(wanted.build.initramfs())
        with (folder / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                command(wanted, folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        outer = cls(folder=folder, build=wanted.build)
        outer._wait("qemu listens", lambda: (folder / "pid").exists() and (folder / "qmp").exists(), process)
        return outer

    @property
    def pid(self) -> int | None:
        """qemu's process id while it runs. Told by its command line too: an id may belong to another by now."""
        try:
            pid = int((self.folder / "pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if f"{self.folder}/pid".encode() in words else None

    def wait_booted(self) -> None:
        self._wait("it is booted", lambda: READY in self.console())

    def console(self) -> str:
        with suppress(FileNotFoundError):
            return (self.folder / "console").read_text(errors="replace")
        return ""

    def channel(self) -> Channel:
        """The way to run commands in it."""
        return Channel(port=self._forwarded(PORT), token=self.build.token)

    def _forwarded(self, port: int) -> int:
        listing = self._told("info usernet")
        forwarded = re.search(rf"HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{port}\b", listing)
        if not forwarded:
            raise OuterFailed(f"qemu of {self.name} forwards nothing to port {port}:\n{listing}")
        return int(forwarded[1])

    def _told(self, line: str) -> str:
        """What qemu answers to a line of its monitor for people."""
        return str(self.monitor("human-monitor-command", {"command-line": line}))

    def save(self, state: Path) -> None:
        """Write all but its memory, which is a file already, and end it."""
        with closing(Monitor.connect(self.folder)) as monitor:
            monitor.call("stop")
            monitor.ignore_shared_memory()
            monitor.call("migrate", {"uri": f"exec:cat > {state}"})
            monitor.wait_migrated()
        self.stop()

    def restore(self, state: Path) -> None:
        """Go on where `state` was saved. Started with `incoming`."""
        with closing(Monitor.connect(self.folder)) as monitor:
            monitor.ignore_shared_memory()
            monitor.call("migrate-incoming", {"uri": f"exec:cat {state}"})
            monitor.wait_migrated()
            # It was saved standing still.
            monitor.call("cont")

    def put_in(self, image: Path) -> None:
        """Give it a second disk, read-only; once. It finds it some moments later, as /dev/vdb."""
        file = {"driver": "file", "filename": str(image)}
        node = {"node-name": "put-in", "driver": "raw", "read-only": True, "file": file}
        with closing(Monitor.connect(self.folder)) as monitor:
            monitor.call("blockdev-add", node)
            monitor.call(
                "device_add", {"driver": "virtio-blk-pci", "bus": DISK_PLACE, "drive": "put-in", "id": "put-in"}
            )

    def forward(self, port: int) -> int:
        """A port of this machine's loopback that leads to `port` inside, where something listens on all addresses."""
        self._told(f"hostfwd_add wan tcp:127.0.0.1:0-:{port}")
        return self._forwarded(port)

    def monitor(self, verb: str, arguments: Mapping[str, Any] | None = None) -> Any:
        with closing(Monitor.connect(self.folder)) as monitor:
            return monitor.call(verb, arguments)

    def stop(self) -> None:
        """End qemu and wait for it. Idempotent. The folder stays: whoever made it removes it."""
        pid = self.pid
        if pid is None:
            return
        handle = os.pidfd_open(pid)
        try:
            with suppress(OSError, OuterFailed):
                self.monitor("quit")
            if not select.select([handle], [], [], QUIT_TIMEOUT_S)[0]:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], QUIT_TIMEOUT_S)
        finally:
            os.close(handle)
        # Only who started it is its parent; for others the system's init takes it.
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)

    def _wait(self, what: str, condition: Any, process: subprocess.Popen[bytes] | None = None) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while not condition():
            ended = process.poll() is not None if process else self.pid is None
            if ended or time.monotonic() > deadline:
                why = "its qemu ended" if ended else f"{BOOT_TIMEOUT_S} s passed"
                log = (self.folder / "qemu.log").read_text(errors="replace")
                raise OuterFailed(f"{self.name}: {why} before {what}\n{log[-2000:]}\n{self.console()[-2000:]}")
            time.sleep(0.02)


@dataclass(slots=True, kw_only=True)
class Monitor:
    """qemu's machine protocol: JSON lines, events between answers."""

    connection: socket.socket
    lines: Any = field(init=False)

    @classmethod
    def connect(cls, folder: Path) -> Self:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        try:
            # The socket is there a moment before anybody listens on it.
            for attempt in range(CONNECT_ATTEMPTS, -1, -1):
                try:
                    connection.connect(str(folder / "qmp"))
                    break
                except ConnectionRefusedError:
                    if attempt == 0:
                        raise
                    time.sleep(0.1)
            monitor = cls(connection=connection)
            monitor.call("qmp_capabilities")
        except BaseException:
            connection.close()
            raise
        return monitor

    def __post_init__(self) -> None:
        self.lines = self.connection.makefile("rb")

    def close(self) -> None:
        self.lines.close()
        self.connection.close()

    def call(self, verb: str, arguments: Mapping[str, Any] | None = None) -> Any:
        request = {"execute": verb} | ({"arguments": arguments} if arguments else {})
        self.connection.sendall(json.dumps(request).encode())
        for line in self.lines:
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise OuterFailed(f"qemu refused {verb}: {answer['error']['desc']}")
        raise OuterFailed(f"qemu ended while it was told to {verb}")

    def ignore_shared_memory(self) -> None:
        """Memory is left out of the state: it is in the file that both machines map."""
        wanted = [{"capability": "x-ignore-shared", "state": True}]
        self.call("migrate-set-capabilities", {"capabilities": wanted})

    def wait_migrated(self) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while (found := self.call("query-migrate")).get("status") != "completed":
            if found.get("status") == "failed" or time.monotonic() > deadline:
                raise OuterFailed(f"qemu could not move the state: {found}")
            time.sleep(0.02)
