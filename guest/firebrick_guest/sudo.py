"""`sudo` for machines whose runtime ignores setuid programs: parse, ask the agent to run it, wait.

It runs as the caller and can do nothing that the caller cannot; who may do what is the agent's to judge
(`sudo_door`). A caller that is root already needs nobody and becomes the target in place, like the real one
without a session to keep.
"""

import os
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket
from errno import EACCES, ENOENT, ENOTDIR

from firebrick_guest.sudo_env import SECURE_PATH, command_env
from firebrick_guest.sudo_options import USAGE, Options, UsageError, parse
from firebrick_guest.sudo_session import follow, own_terminal
from firebrick_guest.sudo_wire import SIZE_BYTES, Request
from firebrick_guest.users import Accounts, User

# Each import is paid for at every call: neither typing nor enum (which signal needs) is among them.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

VERSION = "Sudo version 1.9.13 (Firebrick's, for sandboxes whose kernel ignores setuid programs)"
O_PATH = 0o10000000


class Refused(Exception):
    """What to tell the caller; the exit status is 1."""


def main(arguments: list[str]) -> int:
    """`arguments`: the agent's socket, the path by which it was called, and what its user typed."""
    name, called, *typed = arguments
    try:
        if called.endswith("sudoedit"):
            raise UsageError("sudo: sudoedit is not supported in this sandbox; use sudo with an editor")
        return _serve(name, parse(typed))
    except UsageError as exc:
        print(*filter(None, [str(exc)]), USAGE, sep="\n" if str(exc) else "", end="", file=sys.stderr)
    except Refused as exc:
        print(exc, file=sys.stderr)
    return 1


def _serve(name: str, options: Options) -> int:
    if options.has("h") or options.has("V"):
        print(USAGE if options.has("h") else VERSION, end="" if options.has("h") else "\n")
        return 0
    if options.has("K") or (options.has("k") and not options.command and not any(map(options.has, "ilsv"))):
        # Nothing is remembered, so there is nothing to forget.
        return 0
    accounts = Accounts()
    caller = accounts.find(f"#{os.getuid()}")
    if caller is None:
        raise Refused("sudo: you do not exist in the passwd database")
    target = _target(accounts, options, caller)
    if options.has("l") or options.has("v"):
        return _tell(name, options, caller, target)
    request = _request(options, caller, target)
    if os.geteuid() == 0:
        _become(accounts, target, options.group, request)
    if own_terminal():
        request.has_terminal = not request.is_background
    return follow(lambda descriptors: _ask(name, request, descriptors), request, _explain)


def _target(accounts: Accounts, options: Options, caller: User) -> User:
    """Raises Refused."""
    if options.group and accounts.gid_of(options.group) is None:
        raise Refused(f"sudo: unknown group {options.group}")
    wanted = options.user or (caller.name if options.group else "root")
    found = accounts.find(wanted)
    if found is None:
        raise Refused(f"sudo: unknown user {wanted}")
    return found


def _request(options: Options, caller: User, target: User) -> Request:
    """Raises Refused."""
    shell = target.shell if options.has("i") else (os.environ.get("SHELL") or caller.shell)
    if options.has("i") or options.has("s"):
        program = shell
        argv = [f"-{shell.rpartition('/')[2]}" if options.has("i") else shell]
        argv += ["-c", " ".join(map(_quoted, options.command))] if options.command else []
    else:
        program, argv = _find(options.command[0]), options.command
    line = " ".join([program, *argv[1:]])
    umask = os.umask(0o022)
    os.umask(umask)
    return Request(
        "run", target.name, options.group, program, argv, command_env(_own_env(), caller, target, options, line),
        directory=options.directory or (target.home if options.has("i") else ""), umask=umask | 0o022,
        is_background=options.has("b"), stays_if_gone=not options.directory,
    )  # fmt: skip


def _own_env() -> dict[str, str]:
    """Ours as it was handed to us: Python adds LC_CTYPE to what os.environ shows."""
    try:
        with open("/proc/self/environ", "rb") as file:
            items = os.fsdecode(file.read()).split("\0")
    except OSError:
        return dict(os.environ)
    return dict(item.split("=", 1) for item in items if "=" in item[1:])


def _find(command: str) -> str:
    """The path of a command, absolute for what is named from here. Raises Refused."""
    if "/" in command:
        return command if command.startswith("/") else f"{os.getcwd()}/{command}"
    for folder in SECURE_PATH.split(":"):
        path = f"{folder}/{command}"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise Refused(f"sudo: {command}: command not found")


def _quoted(word: str) -> str:
    """For the shell of -i and -s, as sudo quotes: everything but words and variables."""
    return "".join(sign if sign.isalnum() or sign in "_-$" else f"\\{sign}" for sign in word)


def _tell(name: str, options: Options, caller: User, target: User) -> int:
    """-v and -l: whether it may, and what."""
    program = _find(options.command[0]) if options.command else "/bin/sh"
    request = Request("ask", target.name, options.group, program, options.command or [program], {})
    connection = _ask(name, request, (0, 1, 2))
    verdict, _, rules = _line(connection).partition(" ")
    if verdict != "allowed":
        raise Refused(rules or "sudo: the guest agent did not answer")
    if options.has("l"):
        if options.command:
            print(" ".join([program, *options.command[1:]]))
        else:
            print(f"User {caller.name} may run the following commands on {os.uname().nodename}:")
            print(*(f"    {rule}" for rule in rules.split("\t")), sep="\n")
    return 0


def _ask(name: str, request: Request, descriptors: tuple[int, int, int]) -> socket:
    """Send it, and the connection. Raises Refused."""
    connection = socket(AF_UNIX, SOCK_STREAM)
    here = _here()
    try:
        connection.connect(f"\0{name}")
        payload = request.encode()
        passed = b"".join(item.to_bytes(4, sys.byteorder) for item in (*descriptors, here))
        connection.sendmsg([len(payload).to_bytes(SIZE_BYTES, "big")], [(SOL_SOCKET, SCM_RIGHTS, passed)])
        connection.sendall(payload)
    except OSError as exc:
        raise Refused(f"sudo: the guest agent cannot be asked: {exc.strerror}") from exc
    finally:
        os.close(here)
    return connection


def _here() -> int:
    """The directory we are in, even one that its user may not read."""
    for path in (".", "/proc/self/cwd", "/"):
        try:
            return os.open(path, O_PATH | os.O_DIRECTORY)
        except OSError:
            continue
    raise Refused("sudo: there is no directory to start in")


def _line(connection: socket) -> str:
    answer = b""
    while not answer.endswith(b"\n") and (piece := connection.recv(65536)):
        answer += piece
    return answer.decode("utf-8", "surrogateescape").rstrip("\n")


def _explain(verdict: str, words: str, request: Request) -> str:
    """What to say when it was not started."""
    if verdict == "refused":
        return words
    number, _, stage = words.partition(" ")
    errno = int(number) if number.isdigit() else 0
    reason = os.strerror(errno)
    if verdict != "failed":
        return "sudo: the guest agent ended the connection"
    if stage == "directory":
        return f"sudo: unable to change directory to {request.directory}: {reason}"
    if stage == "fork":
        return f"sudo: unable to fork: {reason}"
    if errno in (EACCES, ENOENT, ENOTDIR):
        return f"sudo: {request.argv[0]}: command not found"
    return f"sudo: unable to execute {request.program}: {reason}"


def _become(accounts: Accounts, target: User, group: str, request: Request) -> "NoReturn":
    """Root's own way: no agent, no second process. Never returns. Raises Refused."""
    if request.is_background and os.fork():
        os._exit(0)
    gid = accounts.gid_of(group) if group else None
    os.umask(request.umask)
    try:
        if request.directory:
            os.chdir(request.directory)
    except OSError as exc:
        if not request.stays_if_gone:
            raise Refused(_explain("failed", f"{exc.errno} directory", request)) from exc
    os.setgroups(target.groups if gid is None else [gid, *target.groups])
    os.setgid(target.gid if gid is None else gid)
    os.setuid(target.uid)
    try:
        os.execve(request.program, request.argv, request.env)
    except OSError as exc:
        raise Refused(_explain("failed", f"{exc.errno} exec", request)) from exc
