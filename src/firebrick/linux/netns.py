"""Network namespaces: made, named under /run/netns as `ip netns` does, entered by threads of their own.

A namespace is a property of a thread. Nothing here may run in the event loop's thread: `in_own_thread` gives
each operation a thread that ends with it, so that no namespace can stick to a thread that others use.
"""

import asyncio
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from firebrick.linux.mount import bind, make_shared, unmount
from firebrick.linux.process import ProcessRef, process_ref

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000
_OWN = Path("/proc/thread-self/ns/net")
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def open_own() -> int:
    """A descriptor of the calling thread's namespace; the caller closes it."""
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def unshare() -> None:
    """Move the calling thread into a new, empty namespace. Raises OSError."""
    _check(_libc.unshare(CLONE_NEWNET))


def enter(descriptor: int) -> None:
    """Move the calling thread into the namespace of an open descriptor. Raises OSError."""
    _check(_libc.setns(descriptor, CLONE_NEWNET))


def prepare_names() -> None:
    """Make /run/netns a shared mount, so that a name removed here goes away in every mount namespace.

    Otherwise a machine started while a name existed would keep that namespace alive. Idempotent.
    """
    NETNS_DIR.mkdir(parents=True, exist_ok=True)
    try:
        make_shared(NETNS_DIR)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        # It is no mount point yet.
        bind(NETNS_DIR, NETNS_DIR)
        make_shared(NETNS_DIR)


def name_own(name: str) -> None:
    """Keep the calling thread's namespace alive under `name`.

    Effects: a file and a mount in /run/netns; undone by `remove`. After a crash half-way an empty file is left,
    which `remove` takes away too. Raises: FileExistsError; OSError.
    """
    path = NETNS_DIR / name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    bind(_OWN, path)


def remove(name: str) -> None:
    """Take a name away; the namespace ends when nothing else lives in it. Idempotent. Raises OSError."""
    path = NETNS_DIR / name
    try:
        while True:
            unmount(path, detach=True)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    path.unlink(missing_ok=True)


def names() -> list[str]:
    try:
        return os.listdir(NETNS_DIR)
    except FileNotFoundError:
        return []


def inode(name: str) -> int:
    """What tells this namespace from an earlier one of the same name; 0 when there is none."""
    try:
        return os.stat(NETNS_DIR / name).st_ino
    except FileNotFoundError:
        return 0


def processes_in(inodes: Collection[int]) -> list[ProcessRef]:
    """The processes whose main thread lives in one of these namespaces."""
    wanted = {f"net:[{number}]" for number in inodes if number}
    found = []
    for entry in os.listdir("/proc") if wanted else ():
        if not entry.isdigit():
            continue
        ref = process_ref(int(entry))
        try:
            # NOTE: identified before it is looked at: a later process of that pid is then never taken for it.
            if ref is not None and os.readlink(f"/proc/{entry}/ns/net") in wanted:
                found.append(ref)
        except OSError:
            continue
    return found


def write_sysctl(name: str, value: str) -> None:
    """Set a network setting of the calling thread's namespace; slashes in the name. Raises OSError."""
    descriptor = os.open(f"/proc/sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def read_sysctl(name: str) -> str:
    return Path(f"/proc/sys/net/{name}").read_text().strip()


def has_ipv6() -> bool:
    """Whether this kernel was built, and started, with IPv6."""
    return Path("/proc/sys/net/ipv6").is_dir()


def call_inside(path: Path, function: Callable[[], T]) -> T:
    """Move the calling thread into the namespace at `path`, for good, and call `function`.

    For a thread that ends afterwards. Raises: OSError and what `function` raises.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(descriptor)
    finally:
        os.close(descriptor)
    return function()


async def in_own_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread that ends with it; its changes of namespace touch nobody else.

    Cancel: waits for the end of `function`, since a kernel call cannot be called back.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            result = function()
        except BaseException as exc:  # noqa: BLE001 - the root of a thread: it is raised where it is awaited
            loop.call_soon_threadsafe(done.set_exception, exc)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    threading.Thread(target=work, name="netns", daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError as exc:
            cancelled = exc
        except BaseException:  # noqa: BLE001 - raised by `result` below
            break
    if cancelled is not None:
        # Its own failure is dropped: who cancels has stopped caring, and an unread one would be logged as lost.
        done.exception()
        raise cancelled
    return done.result()
