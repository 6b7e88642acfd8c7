"""Processes that wait to become a user's command.

A fork is dear where system calls are (gVisor) and a command is what users wait for, so children are forked
ahead of time. Each has its own session, its own three pipes as standard input, output and error, and waits on
a socket for what to become; starting a command is then one message. A zygote keeps no other descriptor: a
copy of somebody's connection or pipe in it would hide that connection's end.
"""

import gc
import marshal
import os
import resource
import signal
import socket
from array import array
from collections.abc import Callable
from fcntl import ioctl
from typing import NoReturn

from firebrick_guest.reaper import Reaper
from firebrick_guest.users import User

READY_COUNT = 2
CONTROL_FD = 3
TIOCSCTTY = 0x540E
_RESET_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)


class Launch:
    """What a zygote becomes. `tty` is the terminal's inner descriptor; without one the pipes are used."""

    __slots__ = ("argv", "cwd", "env", "has_stdin", "tty", "user")

    def __init__(
        self, argv: list[str], env: dict[str, str], cwd: str, user: User, has_stdin: bool, tty: int | None
    ) -> None:
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.user = user
        self.has_stdin = has_stdin
        self.tty = tty

    def encode(self) -> bytes:
        user = self.user
        body = marshal.dumps(
            (
                [os.fsencode(part) for part in self.argv],
                {os.fsencode(name): os.fsencode(value) for name, value in self.env.items()},
                os.fsencode(self.cwd),
                (user.uid, user.gid, user.groups),
                self.has_stdin,
            )
        )
        return len(body).to_bytes(4, "big") + body


class Child:
    """A child that was told what to become, with our ends of its pipes (non-blocking, owned by the taker)."""

    __slots__ = ("pid", "stderr", "stdin", "stdout")

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr


class Zygote(Child):
    """A child that waits."""

    __slots__ = ("control",)

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int, control: socket.socket) -> None:
        super().__init__(pid, stdin, stdout, stderr)
        self.control = control

    def close(self) -> None:
        self.control.close()
        for descriptor in (self.stdin, self.stdout, self.stderr):
            os.close(descriptor)


class Nursery:
    """Owns the waiting zygotes."""

    def __init__(self, reaper: Reaper, limits: tuple[int, int]) -> None:
        self._reaper = reaper
        self._limits = limits
        self._ready: list[Zygote] = []

    def refill(self) -> bool:
        """Fork one zygote if one is missing; True while more are. Raises OSError when the machine is full."""
        if len(self._ready) < READY_COUNT:
            self._ready.append(self._fork())
        return len(self._ready) < READY_COUNT

    def start(self, launch: Launch, ended: Callable[[int], None]) -> Child:
        """Turn a zygote into a command; `ended` gets its wait status. Raises OSError: no process can be made."""
        message = launch.encode()
        while True:
            zygote = self._ready.pop() if self._ready else self._fork()
            try:
                _send(zygote.control, message, launch.tty)
            except (BrokenPipeError, ConnectionResetError):
                # Somebody in the guest killed it while it waited.
                zygote.close()
                continue
            self._reaper.watch(zygote.pid, ended)
            zygote.control.close()
            return zygote

    def close(self) -> None:
        """Let the waiting ones end: they see their socket close."""
        for zygote in self._ready:
            zygote.close()
        self._ready.clear()

    def _fork(self) -> Zygote:
        opened: list[int] = []
        sockets: tuple[socket.socket, ...] = ()
        try:
            for _ in range(3):
                opened += os.pipe2(os.O_CLOEXEC)
            sockets = ours, theirs = socket.socketpair()
            pid = os.fork()
        except OSError:
            for end in sockets:
                end.close()
            for descriptor in opened:
                os.close(descriptor)
            raise
        stdin_r, stdin_w, stdout_r, stdout_w, stderr_r, stderr_w = opened
        if pid == 0:
            _wait_and_become(theirs.fileno(), (stdin_r, stdout_w, stderr_w), self._limits)
        theirs.close()
        for descriptor in (stdin_r, stdout_w, stderr_w):
            os.close(descriptor)
        for descriptor in (stdin_w, stdout_r, stderr_r):
            os.set_blocking(descriptor, False)
        self._reaper.watch(pid, lambda status: self._lost(pid))
        return Zygote(pid, stdin_w, stdout_r, stderr_r, ours)

    def _lost(self, pid: int) -> None:
        for zygote in self._ready:
            if zygote.pid == pid:
                self._ready.remove(zygote)
                zygote.close()
                return


def _send(control: socket.socket, message: bytes, tty: int | None) -> None:
    # The socket blocks, and may: the zygote does nothing but read, and a message is bounded by what a
    # request may hold.
    sent = socket.send_fds(control, [message], [tty] if tty is not None else [])
    if sent < len(message):
        control.sendall(message[sent:])


def _wait_and_become(control: int, pipes: tuple[int, int, int], limits: tuple[int, int]) -> NoReturn:
    """The child's whole life. Nothing of the parent's event loop is touched."""
    try:
        gc.disable()
        signal.set_wakeup_fd(-1)
        for number in _RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for target, descriptor in enumerate(pipes):
            os.dup2(descriptor, target)
        os.dup2(control, CONTROL_FD, inheritable=False)
        os.closerange(CONTROL_FD + 1, 1 << 20)
        os.umask(0o022)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        received = _receive(socket.socket(fileno=CONTROL_FD))
        if received is not None:
            _become(*received)
    except BaseException as exc:  # noqa: BLE001 - the child's task root: it must never return into the parent's code
        _say(f"firebrick: cannot start the command: {exc}\n")
    finally:
        os._exit(126)


def _receive(control: socket.socket) -> tuple[bytes, list[int]] | None:
    data, ancillary, _, _ = control.recvmsg(65536, socket.CMSG_SPACE(4))
    ttys = array("i")
    for _, _, raw in ancillary:
        ttys.frombytes(raw[: len(raw) - len(raw) % 4])
    buffer = bytearray(data)
    while data and (len(buffer) < 4 or len(buffer) < 4 + int.from_bytes(buffer[:4], "big")):
        data = control.recv(1 << 20)
        buffer += data
    return (bytes(buffer[4:]), ttys.tolist()) if data else None


def _become(message: bytes, ttys: list[int]) -> None:
    argv, env, cwd, (uid, gid, groups), has_stdin = marshal.loads(message)
    if ttys:
        ioctl(ttys[0], TIOCSCTTY, 0)
        for target in range(3):
            os.dup2(ttys[0], target)
    elif not has_stdin:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    if os.geteuid() == 0:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
    try:
        os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    except OSError as exc:
        name = os.fsdecode(exc.filename or argv[0])
        _say(f"firebrick: {name}: {exc.strerror}\n")
        os._exit(127 if isinstance(exc, FileNotFoundError) else 126)


def _say(text: str) -> None:
    try:
        os.write(2, text.encode("utf-8", "replace"))
    except OSError:
        pass
