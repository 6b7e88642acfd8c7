"""Uppers: what one machine may write, as a sparse ext4 image behind a loop device.

A filesystem of its own is the disk limit: project quotas are not on every kernel, and a full image is ENOSPC
for its own machine only. All functions block and are called from threads; they raise OSError or CommandFailed.

    seeds/<mib>.img ── clone ──▶ making/<name>/ ── rename, when mounted ──▶ pool/<name>/ ──▶ machines/<id>/

Each directory holds `disk.img` and its mount `disk/`, with overlayfs' `upper` and `work` inside. The rename of
the whole directory is what commits a step: whatever is in `making` after a crash is half-made.
"""

import errno
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from firebrick.linux.loop import attached, clone_sparse, sync_filesystem
from firebrick.linux.mount import MS_NOATIME, MS_NODEV, MS_NOSUID, mount, unmount
from firebrick.linux.process import CommandFailed, run_sync

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
# noinit_itable: else the kernel fills those lazy tables behind our back, 160 MiB of host disk per machine.
# discard: what a guest deletes becomes a hole in the image, so host disk is given back.
_OPTIONS = "discard,noinit_itable,errors=remount-ro"

_E2FSCK_TIMEOUT_S = 600.0
_E2FSCK_MENDED = 3
"""Bits of its status that mean: it found something and mended it."""

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

    def used_bytes(self) -> int:
        return self.image.stat().st_blocks * 512

    def is_pristine(self) -> bool:
        """Mounted, empty, and owned as a new one: fit for the pool after a restart of ours."""
        try:
            return os.path.ismount(self.disk) and self.upper.stat().st_uid == 0 and not any(self.upper.iterdir())
        except OSError:
            return False


def make_upper(image: Path, directory: Path, *, shares: bool = False) -> Upper:
    """Mount a clone of `image`: a seed, or what an earlier machine has written. With `shares` no clone but the file
    itself, under a second name: then the directory it came from must not be mounted.

    Raises OSError, CommandFailed; then `directory` is removed.
    """
    made = Upper(directory=directory)
    directory.mkdir(parents=True)
    try:
        made.disk.mkdir()
        made.merged.mkdir()
        if shares:
            os.link(image, made.image)
        else:
            clone_sparse(image, made.image)
        _mount_image(made)
        if not made.upper.exists():
            made.upper.mkdir()
            made.upper.chmod(0o755)
        if made.work.exists():
            # An overlay marks its work directory as volatile and would refuse it; what is in it is of no use.
            shutil.rmtree(made.work)
        made.work.mkdir(mode=0o700)
    except BaseException:
        destroy_upper(made)
        raise
    return made


def make_disk_file(image: Path, directory: Path, *, shares: bool = False) -> Upper:
    """As `make_upper`, for a kernel that mounts the clone by itself: here it is not.

    Raises OSError; then `directory` is removed.
    """
    made = Upper(directory=directory)
    directory.mkdir(parents=True)
    try:
        if shares:
            os.link(image, made.image)
        else:
            clone_sparse(image, made.image)
    except BaseException:
        destroy_upper(made)
        raise
    return made


def _mount_image(upper: Upper) -> None:
    # No setuid on the host's own view of the disk: a guest's programs must not serve a local user to become root. The
    # tree that the guest sees is mounted over it and has flags of its own.
    with attached(upper.image) as device:
        mount(device, upper.disk, "ext4", flags=MS_NOSUID | MS_NODEV | MS_NOATIME, options=_OPTIONS)


def unmount_upper(upper: Upper) -> None:
    """Unmount, and leave the image with all that was written, flushed. Idempotent. Raises OSError."""
    unmount_patiently(upper.merged)
    unmount_patiently(upper.disk)
    flush_file(upper.image)


def flush_upper(upper: Upper) -> None:
    """Bring what was written to the host's disk. Raises OSError."""
    if upper.has_mounts:
        descriptor = os.open(upper.disk, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(descriptor)
        finally:
            os.close(descriptor)
    flush_file(upper.image)


def flush_file(path: Path) -> None:
    """fsync. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_image(image: Path) -> None:
    """Make an image whole that was copied while it was mounted, or whose host lost power. Raises CommandFailed."""
    done = run_sync(["e2fsck", "-f", "-y", image], check=False, timeout_s=_E2FSCK_TIMEOUT_S)
    if done.returncode & ~_E2FSCK_MENDED:
        raise CommandFailed(["e2fsck", "-f", "-y", str(image)], done.returncode, done.stdout + done.stderr)


def make_seed(seeds: Path, *, disk_mib: int) -> Path:
    """Format an empty image of that size once. Raises CommandFailed or OSError."""
    seed = seeds / f"{disk_mib}.img"
    if seed.exists():
        return seed
    seeds.mkdir(parents=True, exist_ok=True)
    # Of its own name: two threads may format the same size at once, and either result is good.
    draft = seed.with_suffix(f".{secrets.token_hex(6)}")
    try:
        with draft.open("wb") as image:
            image.truncate(disk_mib << 20)
        run_sync([*_MKFS, draft])
        draft.rename(seed)
    finally:
        draft.unlink(missing_ok=True)
    return seed


def destroy_upper(upper: Upper) -> None:
    """Unmount both mounts and delete the directory. Idempotent. Raises OSError: EBUSY when still in use."""
    if not upper.directory.exists():
        return
    unmount_patiently(upper.merged)
    unmount_patiently(upper.disk)
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
