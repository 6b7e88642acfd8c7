"""The pinned programs of Firecracker for tests, as the lab has them: from Python's registry, kept in the cache."""

import fcntl
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import pytest

from firebrick.builder.firecracker_release import CHECKSUMS, PROGRAMS, RELEASE
from firebrick.builder.firecracker_tools import install_firecracker
from firebrick.model.errors import Unavailable
from firebrick.runtimes.firecracker.plan import Tools
from tests.lab.parts import PartMissing, fetch_firecracker
from tests.support.instance import CACHE

JAIL = {
    "agent", "api.sock", "config.json", "dev", "disk", "firecracker", "firecracker.pid", "image", "initrd", "report",
    "run", "save", "spec", "vmlinux", "vsock.sock",
}  # fmt: skip
"""All that stands in a jail's root directory."""


def pinned_programs() -> Path:
    """A directory with `firecracker` and `jailer`. Skips the test, loudly, where they cannot be had."""
    try:
        return _kept_programs()
    except PartMissing as exc:
        pytest.skip(f"NOT RUN: the pinned Firecracker cannot be had: {exc}")


async def installed_tools() -> Tools:
    """All that a microVM needs, in the cache as `firebrick setup firecracker --path` leaves it, and nothing of it from
    GitHub. What is there and of this version is kept. Raises PartMissing, Unavailable."""
    directory = CACHE / "tools" / "firecracker"
    return await install_firecracker(directory, path=_kept_programs(), mirror=None, tell=lambda what, share: None)


def _kept_programs() -> Path:
    """Raises PartMissing."""
    wanted = CHECKSUMS["x86_64"]
    target = CACHE / f"firecracker-{RELEASE}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "firecracker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            making = Path(tempfile.mkdtemp(prefix="firecracker-", dir=CACHE))
            try:
                making.chmod(0o755)
                _get(making)
                making.rename(target)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    assert {name: _sum(target / name) for name in PROGRAMS} == wanted
    return target


async def monitor_tools() -> Tools:
    """All that a monitor needs to start, set up in the cache as a user's machine has it. Whether a guest boots is not
    asked. Skips the test, loudly, where /dev/kvm does not open or the programs cannot be had."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        pytest.skip(f"NOT RUN: /dev/kvm does not open: {exc.strerror}")
    try:
        return await installed_tools()
    except (PartMissing, Unavailable) as exc:
        pytest.skip(f"NOT RUN: what microVMs need cannot be had: {exc}")


def release_archive(programs: Path) -> bytes:
    """An archive as upstream packs them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        for name in PROGRAMS:
            tar.add(programs / name, f"release-v{RELEASE}-x86_64/{name}-v{RELEASE}-x86_64")
    return out.getvalue()


def _get(making: Path) -> None:
    """The lab has them in its path, and no registry."""
    here = {name: shutil.which(name) for name in PROGRAMS}
    if all(path and _sum(Path(path)) == CHECKSUMS["x86_64"][name] for name, path in here.items()):
        for name, path in here.items():
            shutil.copy(str(path), making / name)
    else:
        fetch_firecracker(making)


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
