"""A small image, disks of every kind for a driver on it, and the proof that nothing of it stays."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebrick.linux import device_mapper
from firebrick.linux.loop import attached, backing_files
from firebrick.linux.mount import mount, mounts_below, unmount
from firebrick.rootfs.disks import CloneKind, Disks, FileDisks
from firebrick.rootfs.thin_disks import ThinDisks

INSTANCE = "disktest"


def make_disks(kind: CloneKind, root: Path) -> Disks:
    """A driver of disks for a rootfs driver on `root`."""
    if kind is CloneKind.DEVMAPPER:
        return ThinDisks(root / "thin", instance=INSTANCE)
    return FileDisks(root / "seeds", kind=kind)


def needs_device_mapper() -> None:
    """Skips the test, loudly, where there is none."""
    if not device_mapper.CONTROL.exists():
        pytest.skip("NOT RUN: this kernel has no device mapper (`./dev lab` has one)")


@contextlib.contextmanager
def place_for(kind: CloneKind, directory: Path) -> Iterator[Path]:
    """A directory where disks of this kind can be; skips the test, loudly, where there can be none."""
    if os.geteuid() != 0 or not shutil.which("mkfs.erofs"):
        pytest.skip("NOT RUN: needs root and erofs-utils")
    if kind is CloneKind.DEVMAPPER:
        needs_device_mapper()
    if kind is not CloneKind.REFLINK:
        yield directory
        return
    if not shutil.which("mkfs.xfs"):
        pytest.skip("NOT RUN: no filesystem that shares blocks (mkfs.xfs; `./dev lab` has it)")
    file, place = directory / "xfs.img", directory / "xfs"
    place.mkdir()
    with file.open("wb") as made:
        made.truncate(512 << 20)
    subprocess.run(["mkfs.xfs", "-q", file], check=True)
    with attached(file) as device:
        mount(device, place, "xfs")
    try:
        yield place
    finally:
        unmount(place)
        file.unlink()


def make_image(directory: Path) -> Path:
    """An EROFS image with a file, a directory and a symbolic link."""
    tree = directory / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "name").write_text("from the image\n")
    (tree / "opt" / "pack").mkdir(parents=True)
    (tree / "opt" / "pack" / "file").write_text("packed\n")
    (tree / "link").symlink_to("etc/name")
    image = directory / "rootfs.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", "--all-root", image, tree], check=True, capture_output=True)
    return image


def leaks_below(root: Path) -> list[str]:
    """Mounts below `root`, loop devices on its files, devices of a pool: must be empty when a driver was closed."""
    mounts = [str(entry.target) for entry in mounts_below(root)]
    files = [file for file in backing_files().values() if file.startswith(str(root))]
    names = device_mapper.device_names() if device_mapper.CONTROL.exists() else []
    return mounts + files + [name for name in names if name.startswith(f"firebrick-{INSTANCE}-")]
