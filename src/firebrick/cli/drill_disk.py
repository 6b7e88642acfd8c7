"""The disk of the drill's instance: a file system of its own in a sparse file, which can be filled and freed again.

<directory>/disk.img ── loop device ──▶ <directory>/data, the instance's data directory
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firebrick.linux.loop import attached
from firebrick.linux.mount import MS_NOATIME, mount, mounts_below, unmount
from firebrick.linux.process import run_sync
from firebrick.model.errors import Internal

SIZE_MIB = 64 << 10
"""What is free on it decides what a node takes on, so it is as large as a real one; the file takes what is written."""
FILLER = "filler"
LAST_BYTES = 4096


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Mount it while the block runs. Raises OSError, CommandFailed; Internal: something is still mounted below it."""
    image, place = directory / "disk.img", directory / "data"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE_MIB << 20)
    run_sync(["mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=16", "-E", "lazy_itable_init=1,nodiscard", image])
    with attached(image) as device:
        mount(device, place, "ext4", flags=MS_NOATIME, options="discard,noinit_itable")
    try:
        yield place
    finally:
        unmount(place)
        if mounts_below(directory):
            raise Internal(f"The drill's disk is still mounted at {place}.")
        place.rmdir()
        image.unlink()


def fill(disk: Path) -> None:
    """Take every free block, at once and without writing one. Raises OSError."""
    with (disk / FILLER).open("ab") as file:
        while True:
            room = os.statvfs(disk)
            size_bytes = max(room.f_bavail * room.f_frsize, LAST_BYTES)
            if not _grow(file.fileno(), size_bytes):
                return


def _grow(descriptor: int, size_bytes: int) -> bool:
    """By `size_bytes`, or by as much of it as there is. False when there was nothing left."""
    while size_bytes >= LAST_BYTES:
        try:
            os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, size_bytes)
            return True
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            # A part of it may have been taken all the same; the tables of a large file need blocks too.
            size_bytes //= 2
    return False


def free(disk: Path) -> None:
    """Give back what `fill` took. Idempotent."""
    (disk / FILLER).unlink(missing_ok=True)
