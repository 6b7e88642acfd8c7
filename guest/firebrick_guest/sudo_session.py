"""While the command runs: pass on signals, keep its terminal, and end as it ends.

The command is in a session of its own, so the caller's terminal cannot be its controlling one. When the caller
sits at that terminal, the command gets a new one and this process copies between the two. In a pipeline
(`sudo dmesg | less`) the keyboard is another program's, and the command has the descriptors as they are.
"""

# Not `signal`: its enumerations cost more than all else that is imported here.
import _signal as signal  # type: ignore[import-not-found]
import os
import select
import sys
import termios
import tty
from _socket import socket
from collections.abc import Callable

from firebrick_guest.sudo_wire import Request

PIECE_BYTES = 16 * 1024
_PASSED_ON = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGTSTP, signal.SIGWINCH,
)  # fmt: skip

Descriptors = tuple[int, int, int]


def own_terminal() -> bool:
    """Whether the caller sits at a terminal: it reads and sees it, and we are in the foreground."""
    try:
        return os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def follow(ask: Callable[[Descriptors], socket], request: Request, explain: Callable[[str, str, Request], str]) -> int:
    """Ask for it and stay until it has ended; its exit status. A signal that ended it ends us too."""
    noticed, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number in _PASSED_ON:
        # What nohup, or a shell for its background, made us ignore stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _notice)
    terminal = Terminal() if request.has_terminal else None
    try:
        connection = ask(terminal.descriptors if terminal else (0, 1, 2))
        verdict, words = _Session(connection, noticed, terminal, request.is_background).run()
    finally:
        if terminal:
            terminal.close()
    if verdict == "ended":
        return _end_as(int(words))
    if verdict == "started":
        return 0
    print(explain(verdict, words, request), file=sys.stderr)
    return 1


class Terminal:
    """A terminal for the command; once it is attached the caller's own is raw, until `close`."""

    def __init__(self) -> None:
        self._saved = termios.tcgetattr(0)
        self._master, self._slave = os.openpty()
        termios.tcsetattr(self._slave, termios.TCSANOW, self._saved)
        os.set_blocking(self._master, False)
        self._unsent = b""
        self._is_attached = False
        self._is_typed_out = False
        self._is_shown = False
        self.resize()

    @property
    def descriptors(self) -> Descriptors:
        return self._slave, self._slave, self._slave if os.isatty(2) else 2

    @property
    def waits_for(self) -> list[tuple[int, int]]:
        """What to poll. The keyboard waits while the command does not read, so that nothing piles up."""
        if not self._is_attached:
            return []
        waits = [] if self._is_typed_out or self._unsent else [(0, select.POLLIN)]
        if not self._is_shown:
            waits.append((self._master, select.POLLIN | (select.POLLOUT if self._unsent else 0)))
        return waits

    def attach(self) -> None:
        """The command has it: from here on the keyboard is the command's."""
        os.close(self._slave)
        tty.setraw(0, termios.TCSADRAIN)
        attributes = termios.tcgetattr(0)
        for key in (termios.VINTR, termios.VQUIT, termios.VSUSP):
            # gVisor looks for these in raw mode too. This byte is in no UTF-8 text and on no key.
            attributes[6][key] = b"\xff"
        termios.tcsetattr(0, termios.TCSANOW, attributes)
        self._is_attached = True

    def resize(self) -> None:
        termios.tcsetwinsize(self._master, termios.tcgetwinsize(0))

    def pump(self, ready: set[int]) -> None:
        if 0 in ready:
            self._type()
        if self._unsent:
            self._feed()
        if self._master in ready:
            self._show()

    def close(self) -> None:
        """Show what is left, and give the caller's terminal back as it was."""
        while self._is_attached and self._show():
            continue
        termios.tcsetattr(0, termios.TCSADRAIN, self._saved)

    def _type(self) -> None:
        try:
            self._unsent = os.read(0, PIECE_BYTES)
        except OSError:
            self._unsent = b""
        self._is_typed_out = not self._unsent

    def _feed(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._master, self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = b""

    def _show(self) -> bool:
        """Print what the command wrote; False when there is nothing now, or nobody left to write."""
        try:
            data = os.read(self._master, PIECE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._is_shown = not data
        while data:
            data = data[os.write(1, data) :]
        return not self._is_shown


class _Session:
    def __init__(self, connection: socket, noticed: int, terminal: Terminal | None, is_background: bool) -> None:
        self._connection = connection
        self._noticed = noticed
        self._terminal = terminal
        self._is_background = is_background
        self._answer = b""

    def run(self) -> tuple[str, str]:
        """The agent's last word: the verdict and what belongs to it."""
        while True:
            ready = self._wait()
            if self._noticed in ready:
                self._pass_on()
            if self._terminal:
                self._terminal.pump(ready)
            if self._connection.fileno() not in ready:
                continue
            piece = self._connection.recv(65536)
            *lines, self._answer = (self._answer + piece).split(b"\n")
            for line in lines:
                verdict, _, words = line.decode("utf-8", "surrogateescape").partition(" ")
                if verdict != "started" or self._is_background:
                    return verdict, words
                if self._terminal:
                    self._terminal.attach()
            if not piece:
                return "", ""

    def _wait(self) -> set[int]:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._noticed, select.POLLIN)
        for descriptor, events in self._terminal.waits_for if self._terminal else ():
            poll.register(descriptor, events)
        return {descriptor for descriptor, _ in poll.poll()}

    def _pass_on(self) -> None:
        for number in os.read(self._noticed, 64):
            if number == signal.SIGWINCH and self._terminal:
                self._terminal.resize()
            if number != signal.SIGTSTP:
                self._connection.send(bytes([number]))
                continue
            # The command stops with us, and goes on with us.
            self._connection.send(bytes([signal.SIGSTOP]))
            os.kill(os.getpid(), signal.SIGSTOP)
            self._connection.send(bytes([signal.SIGCONT]))


def _notice(number: int, frame: object) -> None:
    """The wakeup descriptor tells of it."""


def _end_as(wait_status: int) -> int:
    if not os.WIFSIGNALED(wait_status):
        return os.WEXITSTATUS(wait_status)
    number = os.WTERMSIG(wait_status)
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number
