"""A small Debian tree for tests of real machines: made once per machine, kept as an EROFS image, shared by all."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from firebrick.linux.idmap import open_shifted_namespace
from firebrick.linux.mount import bind_idmapped, mount, unmount
from tests.support.instance import CACHE

SUITE = "bookworm"
PACKAGES = ("attr", "bash", "iproute2", "procps", "python3-minimal", "sudo")
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
    key = hashlib.sha256(repr((SUITE, PACKAGES, FINISH)).encode()).hexdigest()[:12]
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
        subprocess.run(["mkfs.erofs", "--quiet", making / "image", making / "root"], check=True, capture_output=True)
        (making / "image").rename(image)
    finally:
        shutil.rmtree(making)


@dataclass(slots=True)
class Trees:
    """Writable trees over one read-only image; all are unmounted at the end."""

    image: Path
    directory: Path
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def mount(self, name: str, *, id_shift: int = 0) -> Path:
        """A new tree. With `id_shift`, owner n inside is n + id_shift here."""
        place = self.directory / name
        for part in ("lower", "upper", "work", "merged"):
            (place / part).mkdir(parents=True)
        mount(self.image, place / "lower", "erofs", flags=1)
        self._stack.callback(unmount, place / "lower", detach=True)
        lower = place / "lower"
        if id_shift:
            namespace = open_shifted_namespace(id_shift)
            bind_idmapped(lower, place / "merged", user_namespace=namespace)
            os.close(namespace)
            self._stack.callback(unmount, place / "merged", detach=True)
            os.chown(place / "upper", id_shift, id_shift)
            lower = place / "merged"
        options = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work,volatile"
        mount("overlay", place / "merged", "overlay", options=options)
        self._stack.callback(unmount, place / "merged")
        return place / "merged"

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def writable_trees() -> Iterator[Trees]:
    """Trees below a directory of their own that machines in user namespaces can reach."""
    directory = Path(tempfile.mkdtemp(prefix="firebrick-trees-", dir="/var/tmp"))
    directory.chmod(0o711)
    trees = Trees(image=minbase_image(), directory=directory)
    try:
        yield trees
    finally:
        trees.close()
        shutil.rmtree(directory)
