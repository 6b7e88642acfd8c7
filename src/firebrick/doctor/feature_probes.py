"""Probes that try a kernel feature for real, on throw-away objects, with a deadline."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from firebrick.doctor.machine_facts import filesystems
from firebrick.doctor.result import ProbeResult, ProbeStatus
from firebrick.linux.idmap import open_shifted_namespace
from firebrick.linux.process import CommandFailed, run
from firebrick.model.ids import new_machine_id
from firebrick.rootfs.base import RootfsFailed
from firebrick.rootfs.overlay import OverlayRootfs

_DEADLINE_S = 20.0
_PROBE_DISK_MIB = 16

# Runs in a network namespace of its own, which ends with it.
_NFTABLES = """
from firebrick.linux.nft import Nft
with Nft() as nft:
    nft.run("table inet probe {\\n chain out {\\n type nat hook postrouting priority srcnat\\n masquerade\\n }\\n }\\n")
"""


async def probe_rootfs(*, patience: float = 1.0) -> ProbeResult:
    """Clone a tiny image with the very driver that sandboxes use, write to it, take it down."""
    name = "rootfs"
    if os.geteuid() != 0:
        return _not_root(name)
    with tempfile.TemporaryDirectory(prefix="firebrick-doctor-") as directory:
        try:
            async with asyncio.timeout(_DEADLINE_S * patience):
                await _clone_once(Path(directory))
        except CommandFailed as exc:
            why = "The image could not be made." if exc.returncode != 127 else "mkfs.erofs is missing."
            return ProbeResult(name=name, status=ProbeStatus.FAIL, summary="not proven", why=why, required=True)
        except (RootfsFailed, OSError, TimeoutError) as exc:
            return _rootfs_failed(name, exc)
    summary = "EROFS, overlayfs and ext4 on a loop device work"
    return ProbeResult(name=name, status=ProbeStatus.OK, summary=summary, required=True)


async def probe_user_namespaces() -> ProbeResult:
    """Make one with a map of ids, as the container runtime will."""
    name = "user namespaces"
    if os.geteuid() != 0:
        return _not_root(name)
    try:
        os.close(await asyncio.to_thread(open_shifted_namespace, 1_000_000))
    except (CommandFailed, OSError):
        why = "The container runtime keeps a sandbox's root apart from the machine's by a user namespace."
        mend = (("sysctl", "-w", "user.max_user_namespaces=10000"),)
        return ProbeResult(name=name, status=ProbeStatus.WARN, summary="cannot be made", why=why, mend=mend)
    return ProbeResult(name=name, status=ProbeStatus.OK, summary="work")


async def probe_network(*, patience: float = 1.0) -> ProbeResult:
    """Load a table with NAT in a namespace made for it."""
    name = "network"
    if os.geteuid() != 0:
        return _not_root(name)
    try:
        argv = ["unshare", "--net", sys.executable, "-c", _NFTABLES]
        await run(argv, timeout_s=_DEADLINE_S * patience)
        veth = "ip link add probe0 type veth peer name probe1"
        await run(["unshare", "--net", "sh", "-c", veth], timeout_s=_DEADLINE_S * patience)
    except CommandFailed as exc:
        why = f"Slots need network namespaces, veth and nftables: {_last_line(exc.stderr)}"
        mend = (("modprobe", "nf_tables"), ("modprobe", "veth"))
        return ProbeResult(
            name=name, status=ProbeStatus.FAIL, summary="nftables or veth do not work", why=why, mend=mend,
            required=True,
        )  # fmt: skip
    return ProbeResult(
        name=name, status=ProbeStatus.OK, summary="namespaces, veth and nftables with NAT work", required=True
    )


def probe_internet() -> ProbeResult:
    """Whether packets of sandboxes would have a way out: a default route. Forwarding is switched on by us."""
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    if any(line.split()[1:2] == ["00000000"] for line in routes):
        return ProbeResult(name="internet", status=ProbeStatus.OK, summary="there is a default route")
    why = "Sandboxes run, but without internet."
    return ProbeResult(name="internet", status=ProbeStatus.WARN, summary="no default route", why=why)


async def _clone_once(directory: Path) -> None:
    tree = directory / "tree"
    tree.mkdir()
    (tree / "file").write_text("probe")
    image = directory / "probe.erofs"
    await run(["mkfs.erofs", "--quiet", image, tree])
    driver = OverlayRootfs(root=directory / "disks", instance="doctor", pool_size=0, reserve_mib=_PROBE_DISK_MIB)
    machine_id = new_machine_id()
    try:
        await driver.recover(frozenset())
        rootfs = await driver.prepare(machine_id, image, disk_mib=_PROBE_DISK_MIB)
        (rootfs.path / "file").write_text("changed")
    finally:
        await driver.remove(machine_id)
        await driver.close()


def _rootfs_failed(name: str, exc: Exception) -> ProbeResult:
    known = filesystems(Path("/proc/filesystems").read_text())
    missing = [kind for kind in ("erofs", "overlay", "ext4") if kind not in known]
    mend = tuple(("modprobe", kind) for kind in missing)
    if not Path("/dev/loop-control").exists():
        missing.append("loop devices")
        mend += (("modprobe", "loop"),)
    lacking = f"The kernel lacks {', '.join(missing)}." if missing else ""
    detail = exc.detail if isinstance(exc, RootfsFailed) else str(exc)
    return ProbeResult(
        name=name, status=ProbeStatus.FAIL, summary="a disk could not be cloned", mend=mend, required=True,
        why=lacking or f"{exc} {detail}".strip(),
    )  # fmt: skip


def _not_root(name: str) -> ProbeResult:
    return ProbeResult(
        name=name, status=ProbeStatus.WARN, summary="not probed", why="Only root can try it.", required=True
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    errors = [line for line in lines if line.startswith(("Error", "firebrick."))]
    return (errors or lines or ["no output"])[-1]
