"""A small Debian tree for tests of real machines: made once per machine, kept as an EROFS image, shared by all."""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from firebrick.linux.erofs import mkfs_command
from tests.support.instance import CACHE

SUITE = "bookworm"
PACKAGES = ("attr", "bash", "iproute2", "procps", "python3", "sudo")
BUILD_TIMEOUT_S = 600
FINISH = """
set -e
cd "$1"
chroot . useradd --create-home --uid 1000 --shell /bin/bash user
echo 'user ALL=(ALL) NOPASSWD: ALL' > etc/sudoers.d/user
mkdir -p .firebrick
rm -rf var/lib/apt/lists/* var/cache/apt/*
"""


def minbase_image() -> Path:
    """The image; the first call on a machine builds it in about half a minute, from the machine's own mirror."""
    key = hashlib.sha256(repr((SUITE, PACKAGES, FINISH, mkfs_command(Path(), Path()))).encode()).hexdigest()[:12]
    image = CACHE / f"minbase-{key}.erofs"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "minbase.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            _build(image)
    return image


def _build(image: Path) -> None:
    making = Path(tempfile.mkdtemp(prefix="minbase-", dir=CACHE))
    try:
        argv = ["unshare", "--mount", "--propagation", "private", "mmdebstrap", "--mode=root", "--variant=minbase"]
        argv += [f"--include={','.join(PACKAGES)}", "--format=directory"]
        (making / "finish.sh").write_text(FINISH)
        argv += [f'--customize-hook=sh {making}/finish.sh "$1"', SUITE, str(making / "root")]
        subprocess.run(argv, check=True, capture_output=True, timeout=BUILD_TIMEOUT_S)
        subprocess.run(mkfs_command(making / "image", making / "root"), check=True, capture_output=True)
        (making / "image").rename(image)
    finally:
        shutil.rmtree(making)
