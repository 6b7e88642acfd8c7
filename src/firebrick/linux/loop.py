"""Loop devices and sparse disk images, by ioctl: a file as a block device, and a clone of a file in microseconds.

Devices are attached with AUTOCLEAR: the kernel detaches one when its last user (our descriptor, then the mount)
is gone. So a killed process of ours leaks no device, and unmounting is all there is to undo.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_FICLONE = 0x40049409
_BLKDISCARD = 0x1277

# struct loop_config: backing fd, block size, loop_info64 (flags and name are all we set), reserved.
_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 8Q")
_ATTACH_ATTEMPTS = 64
_CANNOT_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


@contextmanager
def attached(image: Path, *, read_only: bool = False) -> Iterator[Path]:
    """Attach `image` while the block runs; a mount made inside keeps the device beyond it.

    Raises OSError: no free device, or the image cannot be opened.
    """
    backing = os.open(image, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        device, descriptor = _attach(backing, image, read_only)
    finally:
        os.close(backing)
    try:
        yield device
    finally:
        os.close(descriptor)


def backing_files() -> dict[Path, str]:
    """Every attached loop device with the path of the file behind it."""
    found = {}
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found[Path("/dev") / entry.parts[3]] = entry.read_text().rstrip("\n")
        except OSError:
            continue  # detached between the listing and the read
    return found


def clone_sparse(source: Path, target: Path) -> None:
    """Copy a file by reference where the filesystem can (XFS, btrfs), else only its extents that hold data.

    `target` must not exist. Raises OSError; then `target` is removed.
    """
    try:
        clone_by_reference(source, target)
    except OSError as exc:
        if exc.errno not in _CANNOT_CLONE:
            raise
        copy_extents(source, target)


def clone_by_reference(source: Path, target: Path) -> None:
    """Let `target`, which must not exist, share the blocks of `source` until one of them is written.

    Raises OSError; then `target` is removed. EOPNOTSUPP, EXDEV, ENOTTY: this filesystem cannot.
    """
    with _copying(source, target) as (reader, writer):
        fcntl.ioctl(writer, _FICLONE, reader)


def copy_extents(source: Path, target: Path) -> None:
    """Copy what is no hole. `target` must not exist. Raises OSError; then `target` is removed."""
    with _copying(source, target) as (reader, writer):
        os.ftruncate(writer, os.fstat(reader).st_size)
        copy_data(reader, writer)


@contextmanager
def _copying(source: Path, target: Path) -> Iterator[tuple[int, int]]:
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            yield reader.fileno(), writer.fileno()
        except BaseException:
            target.unlink()
            raise


def copy_data(reader: int, writer: int) -> None:
    """Write what is no hole of a file to the same places of a file or device. Raises OSError."""
    for start, end in data_extents(reader, os.fstat(reader).st_size):
        position = start
        while position < end:
            chunk = os.pread(reader, min(end - position, 1 << 20), position)
            if not chunk:  # cut off meanwhile
                return
            written = 0
            while written < len(chunk):
                written += os.pwrite(writer, chunk[written:], position + written)
            position += len(chunk)


def discard(device: Path, size_bytes: int) -> None:
    """Give back all that is behind a block device; it reads as zeros or as anything. Raises OSError."""
    descriptor = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _BLKDISCARD, struct.pack("=QQ", 0, size_bytes))
    finally:
        os.close(descriptor)


def copy_file(source: Path, target: Path) -> None:
    """`clone_sparse`, and flushed to the disk. Raises OSError; then `target` is not there."""
    clone_sparse(source, target)
    try:
        with target.open("rb") as copy:
            os.fsync(copy.fileno())
    except BaseException:
        target.unlink()
        raise


def sync_filesystem(descriptor: int) -> None:
    """syncfs(2) on the filesystem of an open file. Raises OSError."""
    if _libc.syncfs(descriptor) != 0:
        raise OSError(ctypes.get_errno(), "the filesystem could not be flushed")


def _attach(backing: int, image: Path, read_only: bool) -> tuple[Path, int]:
    flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_READ_ONLY if read_only else 0)
    # The kernel shows at most 63 bytes of the name; the full path is in sysfs' backing_file.
    name = os.fsencode(image)[-63:]
    config = _CONFIG.pack(backing, 0, *([0] * 5), 0, 0, 0, flags, name, b"", b"", *([0] * 10))
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTACH_ATTEMPTS):
            device = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
            descriptor = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, _LOOP_CONFIGURE, config)
            except OSError as exc:
                os.close(descriptor)
                # Somebody took the device between "which is free" and "configure": ask again.
                if exc.errno != errno.EBUSY:
                    raise
                continue
            return device, descriptor
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"no loop device could be had in {_ATTACH_ATTEMPTS} attempts", str(image))


def data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each part of a file that is no hole. Raises OSError."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # no data beyond here
                return
            raise
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position
