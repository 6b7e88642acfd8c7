"""The filesystem on a machine's disk: made, checked, grown. `disk` is a file or a block device that nobody has mounted.

All functions block and are called from threads; they raise OSError or CommandFailed. What a guest has written is read
by e2fsprogs alone.
"""

import os
import struct
from pathlib import Path

from firebrick.linux.process import CommandFailed, run_sync

# noinit_itable: else the kernel fills lazy tables behind our back, 160 MiB of host disk per machine.
# discard: what a guest deletes becomes a hole in the disk, so host disk is given back.
MOUNT_OPTIONS = "discard,noinit_itable,errors=remount-ro"

# No journal: what outlives the kernel that mounted it was flushed while nothing wrote, and is checked before it is
# used again; so the second write would buy nothing.
# Lazy tables: mkfs writes 230 KiB instead of 160 MiB for 10 GiB.
_MKFS = (
    "mkfs.ext4",
    "-q",
    "-F",
    "-b",
    "4096",
    "-m",
    "0",
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1,nodiscard",
)
_TIMEOUT_S = 600.0
_E2FSCK_MENDED = 3
"""Bits of its status that mean: it found something and mended it."""

_LAST_GROUP_BYTES = 4 << 20
"""A last group smaller than this may be left out of a filesystem."""

_SUPERBLOCK_AT, _SUPERBLOCK_BYTES = 1024, 1024
_MAGIC = 0xEF53
_IS_64BIT = 0x80


def format_ext4(disk: Path) -> None:
    """An empty filesystem, as large as the disk."""
    run_sync([*_MKFS, disk])


def check_ext4(disk: Path) -> None:
    """Make one whole that was copied while it was mounted, or whose host lost power."""
    done = run_sync(["e2fsck", "-f", "-y", disk], check=False, timeout_s=_TIMEOUT_S)
    if done.returncode & ~_E2FSCK_MENDED:
        raise CommandFailed(["e2fsck", "-f", "-y", str(disk)], done.returncode, done.stdout + done.stderr)


def grow_ext4(disk: Path, *, disk_mib: int) -> None:
    """Let the filesystem take so much of a disk that is at least as large. O(what is in it)."""
    # It refuses what was mounted since its last check.
    check_ext4(disk)
    run_sync(["resize2fs", disk, f"{disk_mib}M"], timeout_s=_TIMEOUT_S)


def copy_ext4(disk: Path, target: Path) -> None:
    """Copy what the filesystem uses of a disk into a sparse new file, flushed: of a device it alone knows where there
    is nothing. It may be mounted as long as nobody writes. Then `target` is not there."""
    try:
        run_sync(["e2image", "-r", "-a", "-f", disk, target], timeout_s=_TIMEOUT_S)
        descriptor = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, device_bytes(disk))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def device_bytes(disk: Path) -> int:
    """The size of a file or block device."""
    descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def is_as_large(disk: Path, *, disk_mib: int) -> bool:
    """Whether its filesystem takes so much, as that says itself."""
    descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size_bytes = parse_superblock(os.pread(descriptor, _SUPERBLOCK_BYTES, _SUPERBLOCK_AT))
    finally:
        os.close(descriptor)
    return size_bytes + _LAST_GROUP_BYTES > disk_mib << 20


def parse_superblock(block: bytes) -> int:
    """Bytes of an ext4 filesystem from its superblock; 0 for anything else."""
    if len(block) < _SUPERBLOCK_BYTES or struct.unpack_from("<H", block, 0x38)[0] != _MAGIC:
        return 0
    (count,), (log_block_kib,) = struct.unpack_from("<I", block, 4), struct.unpack_from("<I", block, 0x18)
    if struct.unpack_from("<I", block, 0x60)[0] & _IS_64BIT:
        count |= struct.unpack_from("<I", block, 0x150)[0] << 32
    return int(count << (10 + log_block_kib)) if log_block_kib <= 6 else 0
