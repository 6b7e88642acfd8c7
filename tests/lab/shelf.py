"""The shelf: what tests keep in their cache, as a read-only disk that is put into outer machines.

Nothing is copied into a machine: it reads what it uses. What is on the shelf was made outside, where that takes minutes
less: the base template, the guest agent's image, the tools of microVMs, the small image for tests of drivers.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from firebrick.builder.base_template import find_base_template
from firebrick.config import Config

KEPT = ("tools/agent/**/*", "tools/firecracker/*", "minbase-*.erofs")
ROOM_MIB = 64
"""For the filesystem's own tables, beside a sixteenth of what is in it."""
DEVICE = "/dev/vdb"
CACHE_INSIDE = "/var/cache/firebrick"
MOUNT = f"""
while ! [ -e {DEVICE} ]; do sleep 0.1; done
mkdir -p /var/cache/shelf/lower /var/cache/shelf/upper /var/cache/shelf/work {CACHE_INSIDE}
cd /var/cache/shelf
mount -t ext4 -o ro,noload {DEVICE} lower
exec mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=on shelf {CACHE_INSIDE}
"""
"""Run inside: the tests' cache there shows what is on the shelf, and can be written to as if it were no such thing."""


def shelf(test_cache: Path, lab_cache: Path) -> Path | None:
    """The image of what is in `test_cache` now, made if that has changed; None when it has nothing for a machine.

    The caller holds the lab cache's lock. Effects: one file in `lab_cache`; that of an earlier state goes, and machines
    that have it open keep it.
    """
    files = sorted(_files(test_cache))
    if not files:
        return None
    image = lab_cache / f"shelf-{_key(test_cache, files)}.ext4"
    if not image.exists():
        _make(test_cache, files, image)
        for other in lab_cache.glob("shelf-*"):
            if other != image:
                other.unlink()
    return image


def _files(test_cache: Path) -> Iterator[Path]:
    base = find_base_template(Config(data_dir=test_cache))
    if base is not None:
        yield from base.image.parent.iterdir()
    yield from (file for pattern in KEPT for file in test_cache.glob(pattern) if file.is_file())


def _key(test_cache: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        found = file.stat()
        digest.update(f"{file.relative_to(test_cache)} {found.st_size} {found.st_mtime_ns} {found.st_mode}\n".encode())
    return digest.hexdigest()[:12]


def _make(test_cache: Path, files: list[Path], image: Path) -> None:
    # Beside the files: a tree of links costs nothing.
    making = Path(tempfile.mkdtemp(prefix="shelf-", dir=test_cache))
    draft = image.with_suffix(".new")
    draft.unlink(missing_ok=True)
    try:
        for file in files:
            place = making / "tree" / file.relative_to(test_cache)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, place)
        size_mib = ROOM_MIB + sum(file.stat().st_size for file in files) * 17 // 16 // (1 << 20)
        argv = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", making / "tree", draft]
        subprocess.run([*argv, f"{size_mib}M"], check=True, capture_output=True)
        draft.rename(image)
    finally:
        shutil.rmtree(making)
        draft.unlink(missing_ok=True)
