"""Where the runtime ignores setuid programs, `sudo` inside asks the agent, which is root, to run its command.

Who asks is told by the kernel with the first message (SCM_CREDENTIALS; gVisor's SO_PEERCRED names whoever looks),
and only a message that carries descriptors counts: what a privileged program might be tricked into writing to a
socket it was given has none. Who may act as whom is told by the image's sudoers, and nothing else is judged here:
whoever may run everything as somebody may also choose directory and environment.
"""

import asyncio
import os
import signal
import socket
import struct
from collections.abc import Callable
from errno import ENOEXEC

from firebrick_guest.launch import Launch, start_with_descriptors, start_with_terminal
from firebrick_guest.logs import EventLog
from firebrick_guest.reaper import Reaper, tell_session
from firebrick_guest.sudo_wire import DESCRIPTOR_COUNT, MAX_REQUEST_BYTES, SIZE_BYTES, Request, decode
from firebrick_guest.sudoers import read_rules
from firebrick_guest.users import Accounts, User

MAX_CALLERS = 256
REQUEST_TIMEOUT_S = 10.0
# What `sudo` may pass on to its command. A caller that dies takes the command with it, by SIGKILL.
RELAYED = frozenset({
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGSTOP, signal.SIGCONT,
})  # fmt: skip
_CREDENTIALS = struct.Struct("iII")


class SudoDoor:
    """Listens on the abstract socket `name`; with "" there is no door."""

    def __init__(
        self, name: str, accounts: Accounts, reaper: Reaper, log: EventLog, limits: tuple[int, int], etc: str = "/etc"
    ) -> None:
        self._name = name
        self._accounts = accounts
        self._reaper = reaper
        self._log = log
        self._limits = limits
        self._etc = etc
        self._listener: socket.socket | None = None
        self._callers: set[_Caller] = set()

    def open(self) -> None:
        """Raises OSError: the name is taken."""
        if not self._name:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Inherited by every connection, so that no message can come before it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind(f"\0{self._name}")
        listener.listen(64)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for caller in list(self._callers):
            caller.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            # It hung up, or we have no descriptor left: the next one will tell.
            return
        connection.setblocking(False)
        if len(self._callers) >= MAX_CALLERS:
            connection.close()
            return
        self._callers.add(_Caller(connection, self._serve, self._callers.discard))

    def _serve(self, caller: "_Caller", uid: int, request: Request) -> None:
        """Refuse, answer or start what was asked for. Raises ValueError for a request that makes no sense."""
        person = self._accounts.find(f"#{uid}")
        target = self._accounts.find(request.target)
        if person is None:
            caller.answer("refused sudo: you do not exist in the passwd database")
            return
        gid = self._accounts.gid_of(request.group) if request.group else None
        if target is None or (request.group and gid is None):
            raise ValueError("no such user or group")
        refusal, told = self._judge(person, target, request)
        if refusal or request.action == "ask":
            caller.answer(refusal or f"allowed {told}")
        else:
            self._run(caller, person, _with_group(target, gid), request)

    def _judge(self, person: User, target: User, request: Request) -> tuple[str, str]:
        """Why not, in the words of sudo; or "" and the rules that name the caller, separated by tabs."""
        if person.uid == 0:
            return "", "(ALL : ALL) NOPASSWD: ALL"
        names = [self._accounts.group_name(gid) for gid in person.groups]
        rules = [rule for rule in read_rules(self._etc) if rule.names(person, names)]
        fitting = [rule for rule in rules if rule.allows(person, target, request.group)]
        if not rules:
            return f"refused {person.name} is not in the sudoers file.", ""
        if not fitting:
            what, host = " ".join([request.program, *request.argv[1:]]), socket.gethostname()
            words = f"Sorry, user {person.name} is not allowed to execute '{what}' as {target.name} on {host}."
            return f"refused {words}", ""
        if fitting[-1].needs_password:
            return "refused sudo: a password is required", ""
        return "", "\t".join(map(str, rules))

    def _run(self, caller: "_Caller", person: User, target: User, request: Request) -> None:
        launch = Launch(request.argv, request.env, "", target, False, None, request.program, request.umask)
        try:
            failure = _go_to(caller.descriptors[3], request)
            pid = 0
            if not failure:
                pid, failure = self._start(launch, caller.descriptors, has_terminal=request.has_terminal)
        except OSError as exc:
            # The tables are full. It says so, as fork in a shell would, and tries nothing again.
            failure = f"failed {exc.errno} fork"
        finally:
            # Every path that the agent uses is absolute, so nobody sees where it has been.
            os.chdir("/")
        if failure:
            caller.answer(failure)
            return
        self._log.add("info", "sudo", user=person.name, target=target.name, cmd=request.program, pid=pid)
        self._reaper.watch(pid, caller.ended)
        caller.started(pid, is_background=request.is_background)

    def _start(self, launch: Launch, descriptors: tuple[int, ...], *, has_terminal: bool) -> tuple[int, str]:
        """The new process and "", or what to answer. Raises OSError."""
        own = (descriptors[0], descriptors[1], descriptors[2])
        if has_terminal:
            return start_with_terminal(launch, self._limits, own), ""
        pid, failure = start_with_descriptors(launch, own, self._limits)
        if failure and failure.errno == ENOEXEC:
            # A script without a first line that names its interpreter: the shell's, by old custom.
            launch.argv = ["sh", launch.program, *launch.argv[1:]]
            launch.program = "/bin/sh"
            pid, failure = start_with_descriptors(launch, own, self._limits)
        return pid, f"failed {failure.errno} exec" if failure else ""


class _Caller:
    """One `sudo` that asks: its connection and, once started, its command."""

    def __init__(
        self,
        connection: socket.socket,
        serve: Callable[["_Caller", int, Request], None],
        closed: Callable[["_Caller"], None],
    ) -> None:
        self._connection = connection
        self._serve = serve
        self._closed = closed
        self._uid = -1
        self._request = bytearray()
        self._pid = 0
        self.descriptors: tuple[int, ...] = ()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(REQUEST_TIMEOUT_S, self.close)
        self._loop.add_reader(connection, self._read)

    def answer(self, line: str) -> None:
        """The last word."""
        self._say(line)
        self.close()

    def started(self, pid: int, *, is_background: bool) -> None:
        self._say("started")
        self._drop_descriptors()
        if is_background:
            self.close()
        else:
            self._pid = pid

    def ended(self, wait_status: int) -> None:
        self._pid = 0
        if self._connection.fileno() >= 0:
            self.answer(f"ended {wait_status}")

    def close(self) -> None:
        """A command that still runs is killed: its `sudo` is gone."""
        if self._connection.fileno() < 0:
            return
        self._timer.cancel()
        self._loop.remove_reader(self._connection)
        self._connection.close()
        self._drop_descriptors()
        if self._pid:
            # It leads a process group of its own, and until `ended` its number is nobody else's.
            _kill_group(self._pid, signal.SIGKILL)
        self._closed(self)

    def _say(self, line: str) -> None:
        one_line = line.replace("\n", " ") + "\n"
        try:
            self._connection.send(one_line.encode("utf-8", "surrogateescape"), socket.MSG_NOSIGNAL)
        except OSError:
            # It does not read, or is gone: its loss. Nothing waits here.
            return

    def _read(self) -> None:
        try:
            self._take()
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self.answer("refused sudo: the guest agent did not understand the request")

    def _take(self) -> None:
        """Raises OSError, ValueError."""
        if self._uid < 0:
            self._uid, self.descriptors, first = _first_message(self._connection)
            self._request += first
            return
        data = self._connection.recv(65536)
        if not data:
            self.close()
        elif self._pid:
            for number in data:
                if number == signal.SIGWINCH:
                    tell_session(self._pid, number)
                elif number in RELAYED:
                    _kill_group(self._pid, number)
        elif not self._timer.cancelled():
            self._request += data
            self._take_request()

    def _take_request(self) -> None:
        size = int.from_bytes(self._request[:SIZE_BYTES], "big")
        if size > MAX_REQUEST_BYTES or len(self._request) > SIZE_BYTES + size:
            raise ValueError("a request of the wrong size")
        if len(self._request) == SIZE_BYTES + size:
            self._timer.cancel()
            self._serve(self, self._uid, decode(bytes(self._request[SIZE_BYTES:])))

    def _drop_descriptors(self) -> None:
        for descriptor in self.descriptors:
            # Not here: the last close of a socket may linger as long as its owner wished.
            self._loop.run_in_executor(None, os.close, descriptor)
        self.descriptors = ()


def _first_message(connection: socket.socket) -> tuple[int, tuple[int, ...], bytes]:
    """Who sent it, the descriptors and the bytes. Raises OSError, ValueError; then nothing is left open."""
    room = socket.CMSG_SPACE(DESCRIPTOR_COUNT * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)
    data, ancillary, flags, _ = connection.recvmsg(SIZE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    uid, found = -1, bytearray()
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += content[: len(content) // 4 * 4]
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(content) == _CREDENTIALS.size:
            pid, uid, _ = _CREDENTIALS.unpack(content)
            uid = -1 if pid <= 0 else uid
    descriptors = struct.unpack(f"{len(found) // 4}i", found)
    if uid < 0 or len(data) != SIZE_BYTES or len(descriptors) != DESCRIPTOR_COUNT or flags & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ValueError("not a first message")
    return uid, descriptors, data


def _go_to(directory: int, request: Request) -> str:
    """Stand where the command shall start; "" or what to answer."""
    try:
        os.fchdir(directory)
        if request.directory:
            os.chdir(request.directory)
    except OSError as exc:
        return "" if request.stays_if_gone else f"failed {exc.errno} directory"
    return ""


def _with_group(target: User, gid: int | None) -> User:
    if gid is None:
        return target
    groups = [gid, *(other for other in target.groups if other != gid)]
    return User(target.name, target.uid, gid, groups, target.home, target.shell)


def _kill_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return
