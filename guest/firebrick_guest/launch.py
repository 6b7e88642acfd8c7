"""Start a user's command, as that user, as cheaply as the kernel allows.

On gVisor a fork of this process and the exec after it cost 30 ms and slow down all that follows, a vfork
and exec 6 ms. CPython uses vfork only if the child changes no ids between the two, so the ids are changed before:
to the kernel they belong to a thread, not to the process, and the raw system calls (the C library's wrappers
would change every thread) let the calling thread wear the user's for the moment of the vfork. The saved uid
stays 0 and is the way back; exec overwrites it in the child, together with every capability.

A terminal cannot be taken that way, for nothing may run between setsid and exec; commands with one are forked.
"""

import ctypes
import os
import resource
import signal
from _posixsubprocess import fork_exec
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOENT
from fcntl import ioctl
from functools import cache
from typing import NoReturn

from firebrick_guest.users import User

TIOCSCTTY = 0x540E
UNCHANGED = -1
_SETRESUID, _SETRESGID, _SETGROUPS = {"x86_64": (117, 119, 116), "aarch64": (147, 149, 159)}[os.uname().machine]
_LIMITED = (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)
_RESET_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)

_libc = ctypes.CDLL(None, use_errno=True)


class Launch:
    """What to start. `tty` is a terminal's inner descriptor; without one there are pipes. `cwd` may be "": where we
    are. `program` is its path where that is not told by `argv`."""

    __slots__ = ("argv", "cwd", "env", "has_stdin", "program", "tty", "umask", "user")

    def __init__(
        self, argv: list[str], env: dict[str, str], cwd: str, user: User, has_stdin: bool, tty: int | None,
        program: str = "", umask: int = UNCHANGED,
    ) -> None:  # fmt: skip
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.user = user
        self.has_stdin = has_stdin
        self.tty = tty
        self.program = program
        self.umask = umask

    def candidates(self) -> list[bytes]:
        """Where the program may be, as execvp looks for it."""
        name = self.program or self.argv[0]
        if "/" in name:
            return [os.fsencode(name)]
        return [os.fsencode(f"{directory or '.'}/{name}") for directory in self.env.get("PATH", "").split(":")]


class Child:
    """A started command. `stdin`, `stdout` and `stderr` are our ends, non-blocking, the taker's to close; None where
    there is no pipe. `failed_code` is the exit code to tell when the program could not be executed at all."""

    __slots__ = ("failed_code", "pid", "stderr", "stdin", "stdout")

    def __init__(self, pid: int, stdin: int | None, stdout: int, stderr: int, failed_code: int | None) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.failed_code = failed_code


def start_with_pipes(launch: Launch, limits: tuple[int, int]) -> Child:
    """Raises OSError: no process or pipe can be made; then nothing is left."""
    opened: list[int] = []
    try:
        stdin_r, stdin_w = _pipe(opened) if launch.has_stdin else (_null(opened), None)
        stdout_r, stdout_w = _pipe(opened)
        stderr_r, stderr_w = _pipe(opened)
        pid, failure = start_with_descriptors(launch, (stdin_r, stdout_w, stderr_w), limits)
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        raise
    failed_code = _explain(failure, launch, stderr_w) if failure else None
    for descriptor in (stdin_r, stdout_w, stderr_w):
        os.close(descriptor)
    for ours in (stdin_w, stdout_r, stderr_r):
        if ours is not None:
            os.set_blocking(ours, False)
    return Child(pid, stdin_w, stdout_r, stderr_r, failed_code)


class Failure:
    """Why the new process, which has ended by now, could not execute the program."""

    __slots__ = ("errno", "is_cwd")

    def __init__(self, report: bytes) -> None:
        _, number, stage = [*report.split(b":", 2), b"", b""][:3]
        self.errno = int(number, 16) if number else 0
        self.is_cwd = stage.startswith(b"noexec")


def start_with_descriptors(
    launch: Launch, descriptors: tuple[int, int, int], limits: tuple[int, int]
) -> tuple[int, Failure | None]:
    """Start it with these as its 0, 1 and 2; they stay the caller's. Raises OSError: no process can be made."""
    stdin, stdout, stderr = descriptors
    report_r, report_w = os.pipe2(os.O_CLOEXEC)
    try:
        with _worn(launch.user), _limited(limits):
            pid = fork_exec(
                [os.fsencode(part) for part in launch.argv], launch.candidates(), False, (), launch.cwd or None,  # type: ignore[arg-type]
                [os.fsencode(f"{name}={value}") for name, value in launch.env.items()],
                stdin, UNCHANGED, UNCHANGED, stdout, UNCHANGED, stderr, report_r, report_w,
                True, True, UNCHANGED, None, None, None, launch.umask, None, True,  # type: ignore[arg-type]
            )  # fmt: skip
    except OSError:
        os.close(report_w)
        os.close(report_r)
        raise
    os.close(report_w)
    report = os.read(report_r, 4096)
    os.close(report_r)
    return pid, Failure(report) if report else None


def start_with_terminal(
    launch: Launch, limits: tuple[int, int], descriptors: tuple[int, int, int] | None = None
) -> int:
    """The new process, with its terminal or with `descriptors`, of which the first is one, as its 0, 1 and 2.

    Raises OSError: none can be made.
    """
    if descriptors is None:
        assert launch.tty is not None
        descriptors = (launch.tty,) * 3
    pid = os.fork()
    if pid == 0:
        _become(launch, limits, descriptors)
    return pid


def _pipe(opened: list[int]) -> tuple[int, int]:
    pair = os.pipe2(os.O_CLOEXEC)
    opened += pair
    return pair


def _null(opened: list[int]) -> int:
    descriptor = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    opened.append(descriptor)
    return descriptor


def _explain(failure: Failure, launch: Launch, stderr: int) -> int:
    """Tell on the command's own error output why it could not be executed, as a shell would."""
    what = launch.cwd if failure.is_cwd else launch.argv[0]
    os.write(stderr, f"firebrick: {what}: {os.strerror(failure.errno)}\n".encode("utf-8", "replace")[:4096])
    return 127 if failure.errno == ENOENT else 126


@contextmanager
def _limited(limits: tuple[int, int]) -> Iterator[None]:
    """The agent may have many descriptors open and start a process where others may not; what it starts may have
    `limits`: open files, and processes of its user."""
    ours = [resource.getrlimit(kind) for kind in _LIMITED]
    try:
        for kind, soft, (_, hard) in zip(_LIMITED, limits, ours, strict=True):
            resource.setrlimit(kind, (soft, hard))
        yield
    finally:
        for kind, own in zip(_LIMITED, ours, strict=True):
            resource.setrlimit(kind, own)


@contextmanager
def _worn(user: User) -> Iterator[None]:
    """Let the calling thread be `user`, but for the saved uid. Raises OSError."""
    if os.geteuid() != 0:
        yield
        return
    own_groups, own_gid = _own_ids()
    try:
        _set_groups(user.groups, user.gid)
        _call(_SETRESUID, user.uid, user.uid, 0)
        yield
    finally:
        try:
            # NOTE: the uid comes first: without it the groups are not ours to change.
            _call(_SETRESUID, 0, 0, 0)
            _set_groups(own_groups, own_gid)
        except OSError:
            # Going on as a user would be a half-dead agent, and one that lets users touch it.
            os.abort()


@cache
def _own_ids() -> tuple[list[int], int]:
    """Our groups, which never change."""
    return os.getgroups(), os.getegid()


def _set_groups(groups: list[int], gid: int) -> None:
    array = (ctypes.c_uint32 * max(1, len(groups)))(*groups)
    _call(_SETGROUPS, len(groups), ctypes.addressof(array), 0)
    _call(_SETRESGID, gid, gid, gid)


def _call(number: int, first: int, second: int, third: int) -> None:
    if _libc.syscall(*(ctypes.c_long(value) for value in (number, first, second, third))) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _become(launch: Launch, limits: tuple[int, int], descriptors: tuple[int, int, int]) -> NoReturn:
    """The forked child's whole life. Nothing of the parent's event loop is touched."""
    try:
        signal.set_wakeup_fd(UNCHANGED)
        for number in _RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        ioctl(0, TIOCSCTTY, 0)
        for kind, soft in zip(_LIMITED, limits, strict=True):
            resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))
        if os.geteuid() == 0:
            os.setgroups(launch.user.groups)
            os.setgid(launch.user.gid)
            os.setuid(launch.user.uid)
        if launch.umask != UNCHANGED:
            os.umask(launch.umask)
        if launch.cwd:
            os.chdir(launch.cwd)
        os.execvpe(launch.program or launch.argv[0], launch.argv, launch.env)
    except BaseException as exc:  # noqa: BLE001 - see below
        # The child's task root: whatever it is, the child must never return into the parent's code.
        os.write(2, f"firebrick: {launch.argv[0]}: {exc}\r\n".encode("utf-8", "replace"))
        os._exit(127 if isinstance(exc, FileNotFoundError) else 126)
    finally:
        os._exit(126)
