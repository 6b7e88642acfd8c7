"""Disks: what a machine writes, a bounded ext4 each, cloned from an empty one or from what another wrote.

A disk is known by a path, `image`, which may be renamed with its directory; behind it is a file, or a device of which
it is a symbolic link. Who has a disk is told by where its images lie, so a driver needs no other record to know after a
crash what is nobody's.

    make, copy, share ──▶ disk ── attached: a block device to mount, or to hand to a kernel of the machine's own
                            └── capture ──▶ a file that any of these drivers copies

All methods block and are called from threads, several at once for different images. They raise OSError or
CommandFailed, and RootfsFailed where there is more to say; of what failed nothing is left.
"""

import os
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from firebrick.linux.loop import attached, clone_by_reference, clone_sparse, copy_extents
from firebrick.log import get_log
from firebrick.rootfs.base import RootfsFailed
from firebrick.rootfs.ext4 import format_ext4, grow_ext4, is_as_large

log = get_log("rootfs")


class CloneKind(StrEnum):
    """How disks are cloned."""

    SPARSE = "sparse"
    """A copy of what is no hole; on any filesystem."""
    REFLINK = "reflink"
    """Sharing blocks until one is written; on XFS and btrfs."""
    DEVMAPPER = "devmapper"
    """Snapshots in a thin pool of device mapper."""


class Disks(Protocol):
    def open(self, images: Iterable[Path]) -> None:
        """After a restart: see that these can be used. Called once, before anything else."""
        ...

    def make(self, image: Path, *, disk_mib: int) -> None:
        """An empty disk. O(1) but for the first of its size."""
        ...

    def copy(self, source: Path, image: Path) -> None:
        """A disk that begins with what another holds, or a file that `capture` wrote."""
        ...

    def share(self, source: Path, image: Path) -> None:
        """Not another disk but the same, under a second name, until both are removed. O(1)."""
        ...

    def grow(self, image: Path, *, disk_mib: int) -> None:
        """See that it is at least so large, and its filesystem too; nobody has mounted it. It never shrinks. O(1) where
        there is nothing to do."""
        ...

    def attached(self, image: Path) -> AbstractContextManager[Path]:
        """A block device of it while the block runs; a mount made inside keeps it."""
        ...

    def capture(self, image: Path, target: Path) -> None:
        """Copy what it holds to a new file, flushed, while nobody writes. O(data)."""
        ...

    def flush(self, image: Path) -> None:
        """Bring what was written to the host's disk."""
        ...

    def remove(self, image: Path) -> None:
        """Idempotent. Nobody may use it any more: EBUSY."""
        ...

    def used_bytes(self, image: Path) -> int:
        """What it takes of the host's disk."""
        ...

    def free_mib(self) -> int | None:
        """What may still be written in all; None where the filesystem of the images is the bound."""
        ...

    def sweep(self) -> None:
        """Remove what has no image any more: left by a crash."""
        ...

    def close(self) -> bool:
        """Let go of what no mount and no machine uses; False where something is in use. Disks stay."""
        ...


class FileDisks:
    """Each disk a sparse file behind a loop device.

    Args:
        seeds: a directory of ours on the filesystem of the images; made if absent.
        kind: SPARSE or REFLINK; None: by reference where the filesystem can, else a sparse copy.
    """

    def __init__(self, seeds: Path, *, kind: CloneKind | None = None) -> None:
        self._seeds = seeds
        self._kind = kind
        self._clone = copy_extents if kind is CloneKind.SPARSE else clone_sparse

    def open(self, images: Iterable[Path]) -> None:
        self._seeds.mkdir(parents=True, exist_ok=True)
        shares_blocks = self._kind is not CloneKind.SPARSE and can_reflink(self._seeds)
        if self._kind is CloneKind.REFLINK and not shares_blocks:
            raise RootfsFailed(
                "Files here cannot share blocks. Put data_dir on XFS or btrfs, or set disk_clones to auto.",
                detail=str(self._seeds),
            )
        if thin := [image for image in images if image.is_symlink()]:
            raise RootfsFailed(
                f"{len(thin)} disks here are devmapper's. Set disk_clones to devmapper as long as they are needed.",
                detail=str(thin[0]),
            )
        log.info("rootfs.disks", clones=CloneKind.REFLINK if shares_blocks else CloneKind.SPARSE)

    def make(self, image: Path, *, disk_mib: int) -> None:
        self._clone(self._seed(disk_mib), image)

    def copy(self, source: Path, image: Path) -> None:
        self._clone(source, image)

    def share(self, source: Path, image: Path) -> None:
        os.link(source, image)

    def grow(self, image: Path, *, disk_mib: int) -> None:
        if is_as_large(image, disk_mib=disk_mib):
            return
        if image.stat().st_size < disk_mib << 20:
            os.truncate(image, disk_mib << 20)
        grow_ext4(image, disk_mib=disk_mib)

    def attached(self, image: Path) -> AbstractContextManager[Path]:
        return attached(image)

    def capture(self, image: Path, target: Path) -> None:
        self._clone(image, target)
        try:
            self.flush(target)
        except BaseException:
            target.unlink()
            raise

    def flush(self, image: Path) -> None:
        descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, image: Path) -> None:
        image.unlink(missing_ok=True)

    def used_bytes(self, image: Path) -> int:
        return image.stat().st_blocks * 512

    def free_mib(self) -> int | None:
        return None

    def sweep(self) -> None:
        """A file without a name is gone by itself."""

    def close(self) -> bool:
        """A loop device goes with its mount."""
        return True

    def _seed(self, disk_mib: int) -> Path:
        seed = self._seeds / f"{disk_mib}.img"
        if seed.exists():
            return seed
        self._seeds.mkdir(parents=True, exist_ok=True)
        # Of its own name: two threads may format the same size at once, and either result is good.
        draft = seed.with_suffix(f".{secrets.token_hex(6)}")
        try:
            with draft.open("wb") as file:
                file.truncate(disk_mib << 20)
            format_ext4(draft)
            draft.rename(seed)
        finally:
            draft.unlink(missing_ok=True)
        return seed


def can_reflink(directory: Path) -> bool:
    """Whether files in this directory, which must exist, can share blocks."""
    with tempfile.TemporaryDirectory(prefix="probe-", dir=directory) as place:
        source = Path(place) / "source"
        source.write_bytes(bytes(4096))
        try:
            clone_by_reference(source, source.with_name("clone"))
        except OSError:
            return False
        return True
