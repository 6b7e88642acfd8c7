"""Uppers: what one machine may write, as a disk of its own, mounted or left to the machine's kernel.

A filesystem of its own is the disk limit: project quotas are not on every kernel, and a full disk is ENOSPC
for its own machine only. All functions block and are called from threads; they raise OSError or CommandFailed.

    disks ── fill ──▶ making/<name>/ ── rename, when mounted ──▶ pool/<name>/ ──▶ machines/<id>/

Each directory holds `disk.img` and its mount `disk/`, with overlayfs' `upper` and `work` inside. The rename of
the whole directory is what commits a step: whatever is in `making` after a crash is half-made.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firebrick.linux.loop import sync_filesystem
from firebrick.linux.mount import MS_NOATIME, MS_NODEV, MS_NOSUID, mount, unmount
from firebrick.rootfs.disks import Disks
from firebrick.rootfs.ext4 import MOUNT_OPTIONS

Fill = Callable[[Path], None]
"""Puts a disk at a path."""

UNMOUNT_PATIENCE_S = 5.0
"""How long a mount may stay busy after its machine was destroyed: the kernel lets go of a killed process's
files a little after the process is reaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upper:
    """One directory with a mounted image."""

    directory: Path

    @property
    def image(self) -> Path:
        return self.directory / "disk.img"

    @property
    def disk(self) -> Path:
        return self.directory / "disk"

    @property
    def upper(self) -> Path:
        return self.disk / "upper"

    @property
    def work(self) -> Path:
        return self.disk / "work"

    @property
    def merged(self) -> Path:
        return self.directory / "rootfs"

    @property
    def has_mounts(self) -> bool:
        """Whether this kernel has it mounted, or is to: not that of a machine."""
        return self.disk.is_dir()

    def moved(self, directory: Path) -> "Upper":
        """Rename the directory; its mounts follow."""
        self.directory.rename(directory)
        return Upper(directory=directory)

    def is_pristine(self) -> bool:
        """Mounted, empty, and owned as a new one: fit for the pool after a restart of ours."""
        try:
            return os.path.ismount(self.disk) and self.upper.stat().st_uid == 0 and not any(self.upper.iterdir())
        except OSError:
            return False


def make_upper(disks: Disks, directory: Path, fill: Fill, *, is_mounted: bool = True) -> Upper:
    """A new directory with the disk that `fill` puts there; not `is_mounted`: for a kernel that mounts it by itself.

    Raises OSError, CommandFailed, RootfsFailed; then `directory` is removed.
    """
    made = Upper(directory=directory)
    directory.mkdir(parents=True)
    try:
        fill(made.image)
        if is_mounted:
            _mount(disks, made)
    except BaseException:
        destroy_upper(disks, made)
        raise
    return made


def _mount(disks: Disks, made: Upper) -> None:
    made.disk.mkdir()
    made.merged.mkdir()
    _mount_image(disks, made)
    if not made.upper.exists():
        made.upper.mkdir()
        made.upper.chmod(0o755)
    if made.work.exists():
        # An overlay marks its work directory as volatile and would refuse it; what is in it is of no use.
        shutil.rmtree(made.work)
    made.work.mkdir(mode=0o700)


def _mount_image(disks: Disks, upper: Upper) -> None:
    # No setuid on the host's own view of the disk: a guest's programs must not serve a local user to become root. The
    # tree that the guest sees is mounted over it and has flags of its own.
    with disks.attached(upper.image) as device:
        mount(device, upper.disk, "ext4", flags=MS_NOSUID | MS_NODEV | MS_NOATIME, options=MOUNT_OPTIONS)


def unmount_upper(disks: Disks, upper: Upper) -> None:
    """Unmount, and leave the disk with all that was written, flushed. Idempotent. Raises OSError."""
    unmount_patiently(upper.merged)
    unmount_patiently(upper.disk)
    disks.flush(upper.image)


def flush_upper(disks: Disks, upper: Upper) -> None:
    """Bring what was written to the host's disk. Raises OSError."""
    if upper.has_mounts:
        descriptor = os.open(upper.disk, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(descriptor)
        finally:
            os.close(descriptor)
    disks.flush(upper.image)


def destroy_upper(disks: Disks, upper: Upper) -> None:
    """Unmount both mounts, remove the disk and the directory. Idempotent. Raises OSError: EBUSY when still in use."""
    if not upper.directory.exists():
        return
    unmount_patiently(upper.merged)
    unmount_patiently(upper.disk)
    disks.remove(upper.image)
    shutil.rmtree(upper.directory)


def unmount_patiently(target: Path) -> None:
    """Unmount everything stacked on `target`; one that is not mounted is fine.

    Never detaches lazily: a lazy unmount of a busy tree would hide a machine that still writes to its disk.
    """
    deadline = time.monotonic() + UNMOUNT_PATIENCE_S
    pause_s = 0.002
    while True:
        try:
            unmount(target)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):  # not a mount point (any more)
                return
            if exc.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.1)
