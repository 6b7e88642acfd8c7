"""Some outer machines with one owner: started together, on one private network, ended together."""

import compileall
import fcntl
import hashlib
import io
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import cache_from_source
from pathlib import Path

from tests.lab import parts
from tests.lab.channel import Channel
from tests.lab.emulator import emulator
from tests.lab.outer import Outer, Wanted
from tests.lab.root import CHECKOUT_INSIDE, Build, build
from tests.lab.shelf import MOUNT, shelf
from tests.lab.state import state
from tests.support.instance import CACHE as TEST_CACHE

MEMORY_MIB = 4096
MAX_COUNT = 3
RECORD = "lab.json"
NETWORK = "10.78.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The machines whose record is in `folder`."""

    folder: Path
    outers: tuple[Outer, ...]

    @classmethod
    def find(cls, folder: Path) -> "Fleet | None":
        """Those that run. Leftovers of a crash are ended and removed."""
        try:
            record = json.loads((folder / RECORD).read_text())
        except FileNotFoundError:
            return None
        where = Build(folder=Path(record["build"]))
        found = cls(folder=folder, outers=tuple(Outer(folder=folder / name, build=where) for name in record["names"]))
        if all(outer.pid for outer in found.outers):
            return found
        found.down()
        return None

    @classmethod
    def up(cls, folder: Path, *, count: int = 1, memory_mib: int = MEMORY_MIB, cold: bool = False) -> "Fleet":
        """Start `count` machines; build what is missing first.

        Args:
            cold: boot them, instead of starting from a saved state.

        Raises:
            PartMissing: a package or download is missing.
            OuterFailed: qemu or the machine failed; with its console.

        Effects: `folder`, a qemu process per machine, files in the cache. Undo: `down`, but for the cache.
        """
        why = parts.missing_program()
        if why:
            raise parts.PartMissing(why)
        names = [f"lab{number}" for number in range(1, count + 1)]
        with cache_locked():
            built = build(parts.CACHE)
            qemu = emulator(parts.CACHE)
            saved = None if cold else state(built, qemu, memory_mib)
            shared = shelf(TEST_CACHE, parts.CACHE)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(json.dumps({"names": names, "build": str(built.folder)}))
        fleet = cls(folder=folder, outers=tuple(Outer(folder=folder / name, build=built) for name in names))
        # A group of our own on the loopback: other fleets of this machine choose others.
        group = f"239.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(256)}"
        lan = f"{group}:{random.randrange(20000, 60000)}" if count > 1 else ""
        try:
            for outer in fleet.outers:
                wanted = Wanted(build=built, emulator=qemu, memory_mib=memory_mib, lan=lan)
                if saved:
                    wanted = replace(wanted, memory_file=saved.memory, incoming=True)
                    Outer.start(wanted, outer.folder, saved.disk, "qcow2").restore(saved.devices)
                else:
                    Outer.start(wanted, outer.folder, built.root, "raw")
            for number, outer in enumerate(fleet.outers, 1):
                if not saved:
                    outer.wait_booted()
                _identify(outer, number, names)
                if shared:
                    outer.put_in(shared)
                    outer.channel().shell(MOUNT)
        except BaseException:
            fleet.down()
            raise
        return fleet

    def down(self) -> None:
        """End every machine and remove the folder. Idempotent."""
        for outer in self.outers:
            outer.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def channel(self, name: str = "") -> Channel:
        """To the machine `name`, or the first."""
        names = [outer.name for outer in self.outers]
        if name and name not in names:
            raise KeyError(f"no machine {name} in the lab; there are: {', '.join(names)}")
        return next(outer for outer in self.outers if outer.name == (name or names[0])).channel()


def own_folder() -> Path:
    """One fleet per checkout, or per FIREBRICK_LAB_NAME. The name is short because paths of sockets must be."""
    name = os.environ.get("FIREBRICK_LAB_NAME") or hashlib.sha256(str(parts.CHECKOUT).encode()).hexdigest()[:8]
    return parts.CACHE / "up" / name


@contextmanager
def running_fleet(folder: Path) -> Iterator[Fleet]:
    """The one that is up there, or one for this purpose alone."""
    found = Fleet.find(folder)
    if found:
        yield found
    else:
        with fleet(folder) as made:
            yield made


@contextmanager
def fleet(folder: Path, *, count: int = 1, memory_mib: int = MEMORY_MIB) -> Iterator[Fleet]:
    """One for the time of a test."""
    found = Fleet.up(folder, count=count, memory_mib=memory_mib)
    try:
        yield found
    finally:
        found.down()


def put_checkout(channel: Channel) -> None:
    """Make /firebrick inside equal to this checkout, but for compiled Python files of what is unchanged."""
    names = _checkout_files()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in (*names, *_compiled(names)):
            archive.add(parts.CHECKOUT / name, name, recursive=False)
    channel.put([packed.getvalue()], CHECKOUT_INSIDE)
    # What went here goes there.
    listed = set(
        channel.shell(f"cd {CHECKOUT_INSIDE} && find . -type f -not -name '*.pyc' -printf '%P\\n'").splitlines()
    )
    gone = sorted(listed - set(names))
    if gone:
        channel.run("xargs", "-0", "rm", "-f", "--", stdin=["\0".join(gone).encode()], cwd=CHECKOUT_INSIDE)


def _checkout_files() -> list[str]:
    argv = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    done = subprocess.run(argv, cwd=parts.CHECKOUT, capture_output=True, text=True)
    if done.returncode == 0:
        return [name for name in done.stdout.split("\0") if name and os.path.lexists(parts.CHECKOUT / name)]
    kept = (path for path in parts.CHECKOUT.rglob("*") if path.is_file())
    names = [path.relative_to(parts.CHECKOUT) for path in kept]
    return [str(name) for name in names if not any(part in (".venv", "build", "__pycache__") for part in name.parts)]


def _compiled(names: Iterable[str]) -> Iterator[str]:
    """Compiled Python files of these, where this Python compiles for that inside: emulated, it takes a minute."""
    if sys.implementation.cache_tag != f"cpython-{parts.ROOT_PYTHON.replace('.', '')}":
        return
    for name in names:
        source = parts.CHECKOUT / name
        # NOTE: the archive carries times of files: by them the compiled one is known for its source's.
        if name.startswith(("src/", "guest/")) and name.endswith(".py") and compileall.compile_file(source, quiet=2):
            yield str(Path(cache_from_source(str(source))).relative_to(parts.CHECKOUT))


def get_results(channel: Channel, target: Path) -> None:
    """Bring /results home into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    archive = target / ".results.tar"
    try:
        channel.get("/results", archive)
        with tarfile.open(archive) as packed:
            packed.extractall(target, filter="data")
    finally:
        archive.unlink(missing_ok=True)


def _identify(outer: Outer, number: int, names: list[str]) -> None:
    outer.channel().identify(
        {
            "name": outer.name,
            "now": time.time(),
            "seed": secrets.token_hex(32),
            "mac": f"52:54:00:4c:41:{number:02x}",
            "hosts": {name: f"{NETWORK}.{index}" for index, name in enumerate(names, 1)},
        }
    )


@contextmanager
def cache_locked() -> Iterator[None]:
    """Nobody else builds in the cache meanwhile; what another left half made goes."""
    parts.CACHE.mkdir(parents=True, exist_ok=True)
    with (parts.CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # What is half made now belongs to a run that was killed: whoever makes holds the lock.
        for half_made in (*parts.CACHE.glob("making-*"), *parts.CACHE.glob("build-*/making-*")):
            Outer(folder=half_made / "maker", build=Build(folder=half_made)).stop()
            shutil.rmtree(half_made)
        yield
