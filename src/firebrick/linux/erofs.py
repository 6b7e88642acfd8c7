"""EROFS images: read-only trees in one file, as every runtime here can read them."""

from collections.abc import Sequence
from pathlib import Path

# Uncompressed and without tails packed into inodes: gVisor maps files of an image straight from the image file
# (as of 2024-07), so each must lie in whole blocks of its own.
_MKFS = ("mkfs.erofs", "--quiet", "-Enoinline_data")


def mkfs_command(image: Path, tree: Path, *options: str) -> Sequence[str]:
    """The command that writes `tree` to `image`."""
    return [*_MKFS, *options, str(image), str(tree)]
