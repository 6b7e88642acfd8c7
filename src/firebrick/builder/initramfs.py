"""The initramfs of a microVM: a static busybox, the drivers it needs, and our init script. Pure, but for the script's
own text.

An initramfs is a cpio archive of the "newc" kind, which the kernel unpacks (Documentation/driver-api/early-userspace).
"""

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
)
"""Drivers that a guest needs, if its kernel has not got them built in."""

_TRAILER = "TRAILER!!!"
_DIRECTORIES = ("bin", "dev", "proc", "sys", "image", "disk", "agent", "spec", "groups", "root", "modules")
_CONSOLE = (5, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of an archive, owned by root. `device` is (major, minor) of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def init_script() -> bytes:
    """PID 1 of every microVM."""
    return Path(__file__).with_name("guest_init.sh").read_bytes()


def initramfs(*, busybox: bytes, init: bytes, modules: Mapping[str, bytes]) -> bytes:
    """The archive. `modules` are {name: file} in the order in which they are to be loaded."""
    entries = [Entry(name=name, mode=stat.S_IFDIR | 0o755) for name in _DIRECTORIES]
    entries += [
        # Without it the first process has no standard output to complain to.
        Entry(name="dev/console", mode=stat.S_IFCHR | 0o600, device=_CONSOLE),
        Entry(name="bin/busybox", mode=stat.S_IFREG | 0o755, data=busybox),
        Entry(name="init", mode=stat.S_IFREG | 0o755, data=init),
        Entry(name="modules/order", mode=stat.S_IFREG | 0o644, data="".join(f"{m}\n" for m in modules).encode()),
    ]
    entries += [
        Entry(name=f"modules/{name}.ko", mode=stat.S_IFREG | 0o644, data=data) for name, data in modules.items()
    ]
    return cpio(entries)


def cpio(entries: Iterable[Entry]) -> bytes:
    """Write entries in the newc format; equal entries give equal bytes."""
    out = bytearray()
    for inode, entry in enumerate((*entries, Entry(name=_TRAILER, mode=0)), 1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        # inode, mode, uid, gid, links, mtime, size, device of the file (2), device that it is (2), name, checksum
        fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4) + entry.data
        out += bytes(-len(out) % 4)
    return bytes(out)
