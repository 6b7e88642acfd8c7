"""What a microVM is made of, as data: its configuration, its jail, the jailer's command line. Pure.

In the jail, which is the monitor's whole world:

    /vmlinux /initrd          the guest's kernel and our initramfs, shared, read-only
    /image /agent             EROFS drives, shared, read-only        /disk    what the machine writes
    /spec                     a tar with what the init script does   /report  how the guest ended
    /config.json              the configuration                      /api.sock /vsock.sock
    /memory /state            of a machine that goes on from a save  /save    where it writes one: a directory of ours

Large files are bound into the jail in a mount namespace that only the monitor has: nothing is mounted on the host, and
nothing need lie on one file system. Drives appear in the guest in the order of DRIVES.
"""

import hashlib
import io
import json
import re
import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from firebrick.model.ids import MachineId
from firebrick.model.machine import Limits
from firebrick.runtimes.base import MachineSpec

Json = dict[str, Any]

PROGRAM = "firecracker"
"""The monitor's file name; the jailer calls a jail's parent directory by it, and the pid file."""

API_SOCKET, VSOCK_SOCKET, CONFIG, REPORT, SPEC = "api.sock", "vsock.sock", "config.json", "report", "spec"
MEMORY, STATE, SAVE = "memory", "state", "save"
DISK = "disk"
DRIVES = ("image", DISK, "agent", SPEC, REPORT)
WRITABLE = frozenset({DISK, REPORT})
TAP, INTERFACE = "tap0", "eth0"
GUEST_CID = 3
"""The same in every guest: what tells them apart on the host is the socket."""
REPORT_BYTES = 512
MOST_CPU_COUNT = 32

BALLOON = {
    "amount_mib": 0,
    # Whoever needs memory while the balloon has it gets it from there, before anybody is killed for it.
    "deflate_on_oom": True,
    # How much it has taken is told only where there are statistics, of which the monitor reads none (balloon.py): asked
    # for as seldom as can be.
    "stats_polling_interval_s": 65_535,
}

BOOT_ARGUMENTS = (
    "console=ttyS0",
    # A guest that restarts or panics ends: the keyboard controller's reset is what the monitor takes for the end.
    "reboot=k",
    "panic=-1",
    "quiet",
    "loglevel=3",
    "8250.nr_uarts=1",
    "pci=off",
    # Devices that are not there are not waited for.
    "i8042.noaux",
    "i8042.nomux",
    "i8042.nopnp",
    "i8042.dumbkbd",
    "random.trust_cpu=on",
    # Debian's kernel fills what it hands out with zeros even where nobody will read it: each page that the balloon
    # takes would be touched first, and had of the host. It hides the kernel's leftovers from programs inside, of which
    # any may be root.
    "init_on_alloc=0",
    "rdinit=/init",
)

LARGEST_REQUEST_BYTES = 4 << 20
"""Of a guest's to a drive, with room."""

OUTWARD_MTU_BYTES = 1500
"""Ethernet's, for what goes beyond the host; between host and guest nothing is a wire."""

_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_REPORT = re.compile(rb"(?:exit (\d{1,3}) (\d{1,9})|failed ([ -~]{1,200}))\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What `firebrick setup firecracker` puts into one directory."""

    directory: Path

    @property
    def firecracker(self) -> Path:
        return self.directory / PROGRAM

    @property
    def jailer(self) -> Path:
        return self.directory / "jailer"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def initramfs(self) -> Path:
        return self.directory / "initrd"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.firecracker, self.jailer, self.kernel, self.initramfs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How the namespace's own interface is set, which is how the guest's will be."""

    mac: str
    address: IPv4Interface
    gateway: str = ""
    mtu_bytes: int = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The most that a guest may move between host and itself; 0: no limit."""

    disk_bytes_per_s: int = 0
    network_bytes_per_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Jail:
    """Where the jailer puts a machine. `top` is ours; the jailer makes the rest."""

    top: Path
    machine_id: MachineId

    @property
    def directory(self) -> Path:
        return self.top / PROGRAM / self.machine_id

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def agent(self) -> Path:
        """The guest agent's drive under a name of the machine's own: it outlives the agent's next version."""
        return self.directory / "agent.erofs"

    @property
    def save_place(self) -> Path:
        return self.directory / SAVE

    @property
    def base(self) -> Path:
        """What its memory was when the monitor began to remember what is written: a save has only to write over a copy
        of it. Empty: all zeros. Not there: a save writes everything."""
        return self.directory / "base"

    @property
    def started(self) -> Path:
        """How it was started, as `memory.Started`; out of the monitor's reach."""
        return self.directory / "started.json"

    @property
    def pid_file(self) -> Path:
        return self.root / f"{PROGRAM}.pid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a guest ended, as it says itself: nothing but words. `failure`: why the sandbox did not begin."""

    exit_code: int | None = None
    oom_kill_count: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A file, or a directory, of the host's to appear in the jail under a name."""

    source: Path
    name: str
    read_only: bool = True
    is_directory: bool = False


def cpu_count(limits: Limits) -> int:
    """Whole CPUs for a share of them; the cgroup sees to the fraction."""
    return min(MOST_CPU_COUNT, max(1, -(-limits.millicpu // 1000)))


def machine_config(
    limits: Limits, *, network: Network | None, rates: Rates, tracks: bool = False, is_huge: bool = False
) -> Json:
    """config.json of a microVM. Without MMDS: there is no metadata service to reach.

    Args:
        tracks: the monitor remembers which pages are written.
        is_huge: the guest's memory is in pages of 2 MiB, of which a balloon cannot take any.
    """
    config: Json = {
        "boot-source": {
            "kernel_image_path": "/vmlinux",
            "initrd_path": "/initrd",
            "boot_args": " ".join(BOOT_ARGUMENTS),
        },
        "machine-config": {
            "vcpu_count": cpu_count(limits),
            "mem_size_mib": limits.memory_mib,
            "smt": False,
            "track_dirty_pages": tracks,
            "huge_pages": "2M" if is_huge else "None",
        },
        "drives": [_drive(name, rates) for name in DRIVES],
        "network-interfaces": [] if network is None else [_interface(network, rates)],
        "vsock": {"guest_cid": GUEST_CID, "uds_path": f"/{VSOCK_SOCKET}"},
        # The guest's pool of randomness is fed by the host's as well as by its CPU.
        "entropy": {},
    }
    if not is_huge:
        config["balloon"] = BALLOON
    return config


def config_sha256() -> str:
    """Of the devices and boot arguments of all machines: machines of one sum differ in nothing but their limits, their
    network and their rates, and by whether they are tracked."""
    limits = Limits(millicpu=1000, memory_mib=128, disk_mib=1024, process_count=1)
    config = machine_config(limits, network=None, rates=Rates())
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _drive(name: str, rates: Rates) -> Json:
    drive: Json = {
        "drive_id": name,
        "path_on_host": f"/{name}",
        "is_root_device": False,
        "is_read_only": name not in WRITABLE,
        # A flush of the guest's does not reach the host's disk, where one machine's would stall its neighbours. What a
        # pause or a snapshot promises to be safe is flushed by us.
        "cache_type": "Unsafe",
    }
    if rates.disk_bytes_per_s:
        drive["rate_limiter"] = _bucket(rates.disk_bytes_per_s)
    return drive


def _interface(network: Network, rates: Rates) -> Json:
    interface: Json = {"iface_id": INTERFACE, "host_dev_name": TAP, "guest_mac": network.mac}
    if rates.network_bytes_per_s:
        for way in ("rx", "tx"):
            interface[f"{way}_rate_limiter"] = _bucket(rates.network_bytes_per_s)
    return interface


def rate_changes(rates: Rates, *, has_network: bool) -> tuple[tuple[str, Json], ...]:
    """What to ask of the API, path and body, for a machine that was saved under other rates."""
    changes: list[tuple[str, Json]] = []
    for name in DRIVES:
        changes.append((f"/drives/{name}", {"drive_id": name, "rate_limiter": _bucket(rates.disk_bytes_per_s)}))
    if has_network:
        bucket = _bucket(rates.network_bytes_per_s)
        body = {"iface_id": INTERFACE, "rx_rate_limiter": bucket, "tx_rate_limiter": bucket}
        changes.append((f"/network-interfaces/{INTERFACE}", body))
    return tuple(changes)


def _bucket(bytes_per_s: int) -> Json:
    if not bytes_per_s:
        # A bucket without a size is none.
        return {"bandwidth": {"size": 0, "refill_time": 0}}
    # Refilled over a tenth of a second: short bursts pass, and a flood is spread evenly. Over a whole one where that
    # would be less than the largest request, of which the monitor counts only a part.
    parts = 10 if bytes_per_s // 10 >= LARGEST_REQUEST_BYTES else 1
    return {"bandwidth": {"size": bytes_per_s // parts, "refill_time": 1000 // parts}}


def bound_files(tools: Tools, jail: Jail, *, image: Path, disk: Path, save: Path | None = None) -> tuple[Bound, ...]:
    """Args: save: the directory of a save that the machine goes on from, in place of a start."""
    return (
        *(
            (Bound(source=save / MEMORY, name=MEMORY), Bound(source=save / STATE, name=STATE))
            if save
            else (Bound(source=tools.kernel, name="vmlinux"), Bound(source=tools.initramfs, name="initrd"))
        ),
        Bound(source=image, name="image"),
        Bound(source=jail.agent, name="agent"),
        Bound(source=disk, name=DISK, read_only=False),
        Bound(source=jail.save_place, name=SAVE, read_only=False, is_directory=True),
    )


def jailer_argv(
    tools: Tools, jail: Jail, *, user_id: int, netns: Path, largest_file_bytes: int, is_configured: bool = True
) -> list[str]:
    """The jailer's command line. The cgroup is ours: the jailer is in it when it starts, and is told of none.

    Args:
        largest_file_bytes: no file that the monitor writes may be larger.
        is_configured: by its file; otherwise it waits for what its API is told.

    Raises: ValueError for root, who must not run a monitor.
    """
    if user_id <= 0:
        raise ValueError("a monitor needs a user of its own")
    return [
        str(tools.jailer),
        *("--id", jail.machine_id),
        *("--exec-file", str(tools.firecracker)),
        *("--uid", str(user_id)),
        *("--gid", str(user_id)),
        *("--chroot-base-dir", str(jail.top)),
        *("--netns", str(netns)),
        *("--resource-limit", f"fsize={largest_file_bytes}"),
        "--new-pid-ns",
        "--",
        *("--api-sock", f"/{API_SOCKET}"),
        *(("--config-file", f"/{CONFIG}") if is_configured else ()),
        *("--level", "Warning"),
    ]


def spec_archive(spec: MachineSpec, network: Network | None, files: Mapping[str, bytes]) -> bytes:
    """The tar that the init script reads: a shell script with settings, and files to show read-only.

    Raises: ValueError for a host name, a variable or a path that is none.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, "machine", machine_script(spec, network).encode())
        for inside, data in files.items():
            if not inside.startswith("/") or ".." in Path(inside).parts:
                raise ValueError(f"not an absolute path: {inside!r}")
            _add(archive, f"files{inside}", data)
    return out.getvalue()


def machine_script(spec: MachineSpec, network: Network | None) -> str:
    """Settings for the init script, as shell."""
    if not _HOSTNAME.match(spec.hostname):
        raise ValueError(f"not a host name: {spec.hostname!r}")
    for name in spec.env:
        if not _VARIABLE.match(name):
            raise ValueError(f"not a variable's name: {name!r}")
    env = [f"{name}={value}" for name, value in spec.env.items()]
    program = shlex.join(["/bin/busybox", "env", "-i", *env, "/bin/busybox", "chroot", ".", *spec.argv])
    return "".join(
        (
            f"hostname={spec.hostname}\n",
            f"address={network.address if network else ''}\n",
            f"gateway={network.gateway if network else ''}\n",
            f"mtu={network.mtu_bytes if network else ''}\n",
            f"outward_mtu={min(network.mtu_bytes, OUTWARD_MTU_BYTES) if network else ''}\n",
            f"process_count={spec.limits.process_count}\n",
            f"program() {{\n    exec {program}\n}}\n",
        )
    )


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


def parse_report(report: bytes) -> Report | None:
    """None where the guest ended without a word, or with words that are none of ours."""
    found = _REPORT.match(report[:REPORT_BYTES])
    if found is None:
        return None
    if found[3] is not None:
        return Report(failure=found[3].decode())
    return Report(exit_code=min(int(found[1]), 255), oom_kill_count=int(found[2]))
