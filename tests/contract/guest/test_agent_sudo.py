"""The agent's door for `sudo`: who may, what the command gets, and callers that mean no good."""

import array
import os
import pwd
import secrets
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from firebrick_guest.sudo_wire import Request
from tests.contract.guest.agent import GUEST, Agent, parents
from tests.support.wait import wait_for_sync

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the agent becomes other users"),
]
FRIEND, STRANGER = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
SERVE = """
import functools, sys
from firebrick_guest import main
main.SudoDoor = functools.partial(main.SudoDoor, etc=sys.argv[1])
sys.exit(main.main())
"""
# The interpreter may lie where only root can read, so its user is changed when all is loaded.
SUDO = """
import os, pwd, signal, sys
from firebrick_guest import sudo
# A run of the tests in the background has it ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.SIG_DFL)
person = pwd.getpwnam(sys.argv[1])
os.setgroups([])
os.setgid(person.pw_gid)
os.setuid(person.pw_uid)
sys.exit(sudo.main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Door:
    agent: Agent
    name: str

    def argv(self, *args: str, user: str = "nobody") -> list[str]:
        return [sys.executable, "-S", "-B", "-c", SUDO, user, self.name, "/usr/bin/sudo", *args]

    def start(self, *args: str, user: str = "nobody", **options: object) -> "subprocess.Popen[bytes]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        env = {"PYTHONPATH": str(GUEST), "LANG": "C.UTF-8", "MINE": "1"}
        return subprocess.Popen(self.argv(*args, user=user), env=env, **pipes | options)  # type: ignore[call-overload,no-any-return]

    def run(self, *args: str, given: bytes = b"", **options: object) -> tuple[int, bytes, bytes]:
        process = self.start(*args, **options)
        output, errors = process.communicate(given, timeout=30)
        return process.returncode, output, errors

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # NOTE: without a timeout it waits while others are let in first; with one it fails.
        connection.connect(f"\0{self.name}")
        connection.settimeout(20)
        return connection


@pytest.fixture(scope="module")
def running_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    etc = tmp_path_factory.mktemp("etc")
    rules = ("nobody ALL=(ALL:ALL) NOPASSWD: ALL", "bin ALL=(ALL) ALL", "uucp ALL=(nobody) NOPASSWD: ALL")
    (etc / "sudoers").write_text("\n".join(rules))
    name = f"firebrick-sudo-{secrets.token_hex(4)}"
    agent = Agent([sys.executable, "-S", "-B", "-c", SERVE, str(etc)], env={"FIREBRICK_SUDO_SOCKET": name})
    try:
        assert agent.init().status_code == 204
        yield Door(agent, name)
    finally:
        assert agent.stop() == 0


@pytest.fixture
def door(running_door: Door) -> Iterator[Door]:
    """Afterwards no command, no descriptor and no caller is left."""
    before, sockets = running_door.agent.descriptor_count, running_door.agent.socket_count
    yield running_door
    running_door.agent.check_nothing_left(before)
    wait_for_sync(lambda: running_door.agent.socket_count <= sockets)


def test_the_command_runs_as_root_with_what_it_was_given(door: Door, tmp_path: Path) -> None:
    """Ids, directory, arguments, input, output and errors; and nothing of the agent's."""
    script = "id -u; id -G; pwd; cat; echo $MINE$SUDO_USER; umask; echo oops >&2; ls /proc/self/fd; exit 7"
    os.chmod(tmp_path, 0o700)
    code, output, errors = door.run("sh", "-c", script, given=b"in\n", cwd="/usr/lib", umask=0o077)
    assert (code, errors) == (7, b"oops\n")
    assert output.split() == b"0 0 /usr/lib in nobody 0077 0 1 2 3".split()
    assert door.run("-D", str(tmp_path), "pwd")[1] == f"{tmp_path}\n".encode()
    assert door.run("-u", "daemon", "-g", "bin", "sh", "-c", "id -un; id -gn; id -G")[1] == b"daemon\nbin\n2 1\n"
    assert door.run("A=1", "sh", "-c", "echo $A")[1] == b"1\n"


def test_who_may_not_is_told_in_the_words_of_sudo(door: Door) -> None:
    """Not named, named for another, named with a password: exit 1, and nothing was run."""
    assert door.run("id", user="daemon") == (1, b"", b"daemon is not in the sudoers file.\n")
    assert door.run("id", user="bin") == (1, b"", b"sudo: a password is required\n")
    code, output, errors = door.run("id", user="uucp")
    assert (code, output) == (1, b"")
    assert errors.startswith(b"Sorry, user uucp is not allowed to execute '/usr/bin/id' as root on ")
    assert door.run("-u", "nobody", "id", "-un", user="uucp") == (0, b"nobody\n", b"")
    assert door.run("-l")[1].splitlines()[1:] == [b"    (ALL : ALL) NOPASSWD: ALL"]
    assert door.run("-v", user="daemon")[0] == 1


def test_what_cannot_be_run_is_told(door: Door, tmp_path: Path) -> None:
    """Missing commands and directories; a script without a first line is the shell's."""
    for argv in (["no-such"], ["/no/such"], ["/etc/passwd"], ["/etc"]):
        assert door.run(*argv) == (1, b"", f"sudo: {argv[0]}: command not found\n".encode())
    code, _, errors = door.run("-D", "/no/such", "id")
    assert (code, errors) == (1, b"sudo: unable to change directory to /no/such: No such file or directory\n")
    (tmp_path / "script").write_text("echo $1")
    (tmp_path / "script").chmod(0o755)
    assert door.run(str(tmp_path / "script"), "a b")[:2] == (0, b"a b\n")


def test_signals_reach_the_command_and_its_end_is_ours(door: Door) -> None:
    """TERM and INT are passed on; a signal that ends the command ends sudo."""
    for number in (signal.SIGTERM, signal.SIGINT):
        process = door.start("sh", "-c", "echo ready; exec sleep 1000")
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode == -number
    assert door.run("sh", "-c", "kill -9 $$")[0] == -9


def test_a_killed_sudo_takes_its_command_along(door: Door) -> None:
    """Also when it can pass nothing on any more; in the background it lives."""
    process = door.start("sh", "-c", "sleep 1000 & echo ready; wait")
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.communicate(timeout=20)
    wait_for_sync(lambda: not door.agent.children())
    code, output, _ = door.run("-b", "sh", "-c", "echo $$; exec sleep 1000 >/dev/null 2>&1")
    assert code == 0
    os.kill(int(output), signal.SIGKILL)


def test_a_terminal_is_the_commands_own(door: Door) -> None:
    """It controls one of the same size; keys, Ctrl-C and resizes reach it; the caller's is as before."""
    pid, master = os.forkpty()
    if pid == 0:
        script = "trap 'stty size' WINCH; tty; stty size; read a; echo got $a; while :; do sleep 0.1; done"
        os.execve(sys.executable, door.argv("bash", "-c", script), {"PYTHONPATH": str(GUEST)})
    shown = bytearray()

    def shows(text: bytes) -> bool:
        os.set_blocking(master, False)
        try:
            shown.extend(os.read(master, 65536))
        except BlockingIOError:
            pass
        return text in shown

    termios.tcsetwinsize(master, (33, 77))
    before = termios.tcgetattr(master)
    wait_for_sync(lambda: shows(b"33 77"))
    assert b"/dev/pts/" in shown
    os.write(master, b"keys\r")
    wait_for_sync(lambda: shows(b"got keys"))
    termios.tcsetwinsize(master, (44, 99))
    wait_for_sync(lambda: shows(b"44 99"))
    os.write(master, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGINT
    assert termios.tcgetattr(master) == before
    os.close(master)


def test_root_needs_no_door(door: Door) -> None:
    """It becomes the target in place."""
    elsewhere = Door(door.agent, "no-such-socket")
    assert elsewhere.run("-u", "nobody", "id", "-un", user="root") == (0, b"nobody\n", b"")
    assert elsewhere.run("id")[2].startswith(b"sudo: the guest agent cannot be asked: ")


def send_first(connection: socket.socket, request: Request, *more: tuple[int, int, bytes], count: int = 4) -> None:
    """A first message as `sudo` sends it, with other ancillary data if wanted, and the request."""
    payload = request.encode()
    opened = [os.open("/dev/null", os.O_RDWR) for _ in range(3)] + [os.open("/", os.O_RDONLY)]
    descriptors = array.array("i", (opened * 4)[:count])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors.tobytes())] if count else []
    try:
        connection.sendmsg([len(payload).to_bytes(4, "big")], [*rights, *more])
        connection.sendall(payload)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def credentials(pid: int, uid: int, gid: int) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", pid, uid, gid)


TOUCH = Request("run", "root", "", "/bin/touch", ["touch", "/no-such-directory/x"], {})


def answer_to(door: Door, uid: int, *more: tuple[int, int, bytes], count: int = 4) -> bytes:
    """What a process of `uid` hears; b"forbidden" when the kernel does not let it ask."""
    heard, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            with door.connect() as connection:
                send_first(connection, TOUCH, *more, count=count)
                os.write(said, connection.recv(4096))
        except PermissionError:
            os.write(said, b"forbidden")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(said)
    with open(heard, "rb") as file:
        return file.read()


def test_nobody_can_pretend_to_be_another(door: Door) -> None:
    """The kernel tells who asks, and it lets nobody tell otherwise."""
    me = STRANGER.pw_uid
    assert answer_to(door, me) == b"refused daemon is not in the sudoers file.\n"
    assert answer_to(door, me, credentials(os.getpid(), 0, 0)) == b"forbidden"
    assert answer_to(door, me, credentials(os.getpid(), FRIEND.pw_uid, FRIEND.pw_gid)) == b"forbidden"
    assert answer_to(door, FRIEND.pw_uid).startswith(b"started\n")


@pytest.mark.parametrize("count", [0, 1, 3, 5, 16])
def test_a_message_without_the_right_descriptors_counts_for_nothing(door: Door, count: int) -> None:
    """What a privileged program was tricked into writing has none; more than are due are closed."""
    # Or nothing, when the agent has hung up on the rest of it.
    assert answer_to(door, 0, count=count) in (b"", b"refused sudo: the guest agent did not understand the request\n")


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0" * 40, b"run\0root", b"run\0root\0\0id\0\x000\0\x001\0id", b"run\0no-such\0\0/bin/id\0\x000\0\x001\0id",
     b"run\0root\0\0/bin/id\0\x00999\0\x001\0id", b"run\0root\0\0/bin/id\0\x000\0\x00-1\0id", b"\xff" * 100],
)  # fmt: skip
def test_nonsense_is_refused(door: Door, payload: bytes) -> None:
    """It is told so, and the agent goes on."""
    with door.connect() as connection:
        rights = array.array("i", [0, 1, 2, 0]).tobytes()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        connection.sendmsg([len(payload).to_bytes(4, "big")], ancillary)
        if payload:
            connection.sendall(payload)
            assert connection.recv(4096).startswith(b"refused")
    assert door.agent.http.get("/health").status_code == 204


def test_silent_and_greedy_callers_hold_up_nobody(door: Door) -> None:
    """Half a request, a size beyond all measure, more callers than there is room for."""
    with door.connect() as connection:
        connection.sendmsg([b"\xff" * 4], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 4).tobytes())])
        connection.sendall(b"x")
        assert connection.recv(4096).startswith(b"refused")
    silent = [door.connect() for _ in range(300)]
    assert door.agent.http.get("/health").status_code == 204
    for connection in silent:
        connection.close()
    wait_for_sync(lambda: door.run("true")[0] == 0)
    assert not {pid for pid, parent in parents().items() if parent == door.agent.process.pid}
