"""A small image, a driver on it, and the proof that nothing of it stays."""

import subprocess
from pathlib import Path

from firebrick.linux.loop import backing_files
from firebrick.linux.mount import mounts_below


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
    """Mounts below `root` and loop devices on its files: must be empty when a driver was closed."""
    mounts = [str(entry.target) for entry in mounts_below(root)]
    return mounts + [file for file in backing_files().values() if file.startswith(str(root))]
