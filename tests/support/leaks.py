"""What of ours is on this machine: taken before a test and after it, and the difference is a leak.

Other programs, and other test runs, work on the same machine. So only what bears a watched name, lies below a
watched directory or carries this run's mark in its environment is counted.
"""

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from firebrick.linux.mount import mounts_below
from firebrick.linux.netlink import NetlinkSocket
from firebrick.linux.netns import names
from firebrick.linux.nft import Nft, NftFailed

RUN_MARK = "PYTEST_OF_FIREBRICK"
"""Set in our environment, so that every child that keeps its environment can be told from other processes."""
os.environ.setdefault(RUN_MARK, uuid.uuid4().hex)

GRACE_S = 10.0
"""The kernel takes namespaces and their links apart behind the caller's back."""
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class HostInventory:
    """Everything counted, one readable line each."""

    objects: frozenset[str]

    @classmethod
    def take(cls, prefixes: tuple[str, ...] = (), directories: tuple[Path, ...] = ()) -> "HostInventory":
        """List what bears one of the names `prefixes` (anywhere in its own name) or lies below `directories`."""
        found = {*_processes(prefixes), *_descriptors(prefixes, directories), *_mounts(prefixes, directories)}
        found.update(f"netns {name}" for name in names() if _bears(name, prefixes))
        found.update(_links(prefixes), _tables(prefixes), _cgroups(prefixes), _loop_devices(directories))
        found.update(f"file {path}" for top in directories if top.is_dir() for path in top.rglob("*"))
        return cls(frozenset(found))

    def diff(self, before: "HostInventory") -> list[str]:
        """What is here and was not there before."""
        return sorted(self.objects - before.objects)


def marked_processes(mark: str) -> list[str]:
    """Every process that was started under `mark` as its run's mark."""
    wanted = f"{RUN_MARK}={mark}".encode()
    return [line for pid, line in _commands() if wanted in _environment(pid)]


def _bears(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(prefix in name for prefix in prefixes)


def _below(path: str, directories: tuple[Path, ...]) -> bool:
    return any(path == str(top) or path.startswith(f"{top}/") for top in directories)


def _processes(prefixes: tuple[str, ...]) -> Iterator[str]:
    mark = f"{RUN_MARK}={os.environ[RUN_MARK]}".encode()
    for pid, command in _commands():
        try:
            marked = mark in _environment(pid)
            name, state = _name_and_state(pid)
            is_zombie = state == "Z" and _is_child(pid)
        except OSError:
            continue
        if marked or _bears(command, prefixes) or is_zombie:
            yield f"process {pid} ({name}, {state}): {command[:200]}"


def _commands() -> Iterator[tuple[str, str]]:
    """(pid, command line) of every process but this one."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:
            continue
        yield entry, command.replace(b"\0", b" ").decode(errors="replace").strip()


def _environment(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _name_and_state(pid: str) -> tuple[str, str]:
    before, _, after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    return before.partition("(")[2], after.split()[0]


def _is_child(pid: str) -> bool:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()


def _descriptors(prefixes: tuple[str, ...], directories: tuple[Path, ...]) -> Iterator[str]:
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        # Sockets and pipes are left out: event loops and libraries keep some for the life of the process.
        is_kernel_handle = target.startswith(("net:[", "mnt:[", "user:[", "anon_inode:[pidfd]"))
        if is_kernel_handle or _bears(target, prefixes) or _below(target, directories):
            yield f"descriptor {entry} of the test process -> {target}"


def _mounts(prefixes: tuple[str, ...], directories: tuple[Path, ...]) -> Iterator[str]:
    for entry in mounts_below(Path("/")):
        target = str(entry.target)
        if _bears(target, prefixes) or _below(target, directories):
            yield f"mount {target} ({entry.fstype})"


def _links(prefixes: tuple[str, ...]) -> Iterator[str]:
    with NetlinkSocket() as netlink:
        yield from (f"link {link.name}" for link in netlink.links() if _bears(link.name, prefixes))


def _tables(prefixes: tuple[str, ...]) -> Iterator[str]:
    if not prefixes or os.geteuid() != 0:
        return
    try:
        with Nft() as nft:
            listed = nft.run("list tables")
    except NftFailed:
        return
    yield from (f"nft {line.strip()}" for line in listed.splitlines() if _bears(line, prefixes))


def _cgroups(prefixes: tuple[str, ...]) -> Iterator[str]:
    for top, folders, _ in os.walk("/sys/fs/cgroup") if prefixes else ():
        yield from (f"cgroup {top}/{name}" for name in folders if _bears(name, prefixes))


def _loop_devices(directories: tuple[Path, ...]) -> Iterator[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = path.read_text().strip().removesuffix(" (deleted)")
        except OSError:
            continue
        if _below(backing, directories):
            yield f"loop device /dev/{path.parts[3]} of {backing}"


@dataclass(slots=True)
class LeakCheck:
    """What a test asks to be watched: names its objects bear, directories that must be empty again."""

    prefixes: tuple[str, ...] = ()
    directories: tuple[Path, ...] = ()
    before: HostInventory = field(default_factory=HostInventory.take)

    def watch(self, *prefixes: str, directories: tuple[Path, ...] = ()) -> None:
        """Watch these from now on. What is there already is no leak."""
        self.prefixes += prefixes
        self.directories += directories
        # What the new names add, and only that: what has leaked by now under the old ones stays a leak.
        fresh = HostInventory.take(prefixes, directories).objects - HostInventory.take().objects
        self.before = HostInventory(self.before.objects | fresh)

    def check(self) -> None:
        """Fail, naming each object, unless all that is new goes away within the grace."""
        deadline = time.monotonic() + GRACE_S
        while leaked := HostInventory.take(self.prefixes, self.directories).diff(self.before):
            if time.monotonic() > deadline:
                pytest.fail(f"{len(leaked)} leaked:\n  " + "\n  ".join(leaked), pytrace=False)
            time.sleep(POLL_S)


@pytest.fixture
def no_leaks() -> Iterator[LeakCheck]:
    """Assert at teardown that nothing watched is left; `no_leaks.watch("ab12")` adds a name."""
    check = LeakCheck()
    yield check
    check.check()
