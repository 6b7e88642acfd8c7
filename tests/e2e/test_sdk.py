"""What users do with a sandbox, through the official SDK."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import httpx
import pytest
import websockets.sync.client
from e2b import CommandExitException, Sandbox, TimeoutException
from e2b.exceptions import InvalidArgumentException, NotFoundException, SandboxException

from firebrick.model.machine import RuntimeName
from tests.support.instance import Instance
from tests.support.wait import LIFETIME_S, SLOWNESS, wait_for_sync


def test_commands_tell_output_and_exit_code(box: Sandbox) -> None:
    """stdout, stderr and the exit code come back; a non-zero exit is the SDK's exception."""
    done = box.commands.run("echo out; echo err >&2")
    assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 0)
    with pytest.raises(CommandExitException) as caught:
        box.commands.run("exit 7")
    assert caught.value.exit_code == 7


def test_a_user_may_become_root_and_install(box: Sandbox) -> None:
    """The default user has passwordless sudo, as in E2B's base template."""
    assert box.commands.run("sudo id -u").stdout.strip() == "0"
    assert box.commands.run("id -un", user="root").stdout.strip() == "root"


def test_the_base_template_has_the_usual_tools(box: Sandbox) -> None:
    """Python with pip, Node.js with npm, git, curl, a compiler, and `python` besides `python3`."""
    tools = "python3 python pip node npm git curl gcc make sudo tput ps ss setfattr unzip"
    assert box.commands.run(f"for t in {tools}; do command -v $t >/dev/null || echo missing $t; done").stdout == ""


def test_a_shell_finds_its_locale_in_one_file(box: Sandbox) -> None:
    """LANG is a UTF-8 locale, and it comes from the archive: each file of its own would cost every command."""
    told = box.commands.run("x=漢; echo $LANG ${#x}; localedef --list-archive").stdout
    assert told.split() == ["C.UTF-8", "1", "C.utf8"]


def test_files_keep_their_bytes(box: Sandbox) -> None:
    """Text with any character, and bytes of any value, come back as they went."""
    text = "häßlich 漢字 🧱\n"
    box.files.write("/home/user/ä b+c%.txt", text)
    assert box.files.read("/home/user/ä b+c%.txt") == text
    data = bytes(range(256)) * 4096
    box.files.write("/home/user/blob", data)
    assert bytes(box.files.read("/home/user/blob", format="bytes")) == data


def test_files_can_be_listed_moved_and_removed(box: Sandbox) -> None:
    """list, exists, make_dir, rename and remove do what their names say."""
    assert box.files.make_dir("/home/user/d/e")
    assert not box.files.make_dir("/home/user/d/e")
    box.files.write("/home/user/d/f", "1")
    assert [item.name for item in box.files.list("/home/user/d")] == ["e", "f"]
    box.files.rename("/home/user/d/f", "/home/user/d/g")
    assert box.files.exists("/home/user/d/g")
    assert not box.files.exists("/home/user/d/f")
    box.files.remove("/home/user/d")
    with pytest.raises(NotFoundException):
        box.files.read("/home/user/d/g")


def test_background_commands_live_on(box: Sandbox) -> None:
    """A background command is listed, takes standard input, and can be killed."""
    handle = box.commands.run("cat", background=True, stdin=True)
    assert handle.pid in [item.pid for item in box.commands.list()]
    box.commands.send_stdin(handle.pid, "hello")
    box.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "hello"
    sleeper = box.commands.run("sleep 1000", background=True)
    assert box.commands.kill(sleeper.pid)
    assert box.commands.run(f"kill -0 {sleeper.pid} 2>/dev/null || echo gone").stdout == "gone\n"


def test_a_command_that_takes_too_long_is_ended(box: Sandbox) -> None:
    """The command's own timeout ends it inside and tells the client."""
    with pytest.raises(TimeoutException):
        box.commands.run("sleep 1000", timeout=1)
    assert box.commands.run("pgrep -x sleep || echo none").stdout == "none\n"


def test_environment_of_the_sandbox_and_of_a_command(running: Instance) -> None:
    """Variables of the sandbox reach every command; those of a command win and do not stay."""
    with Sandbox.create(timeout=LIFETIME_S, envs={"A": "sandbox", "B": "kept"}, **running.sdk) as box:
        assert box.commands.run("echo $A $B", envs={"A": "command"}).stdout == "command kept\n"
        assert box.commands.run("echo $A $E2B_SANDBOX_ID").stdout == f"sandbox {box.sandbox_id}\n"


def test_a_server_inside_is_reached_by_host_name_and_by_header(box: Sandbox, running: Instance) -> None:
    """A port of the sandbox answers through the edge under `<port>-<id>.<domain>` and under the two headers."""
    box.files.write("/home/user/www/hello.txt", "hi there")
    box.commands.run("python3 -m http.server 8000 -d /home/user/www", background=True)
    by_name = {"Host": box.get_host(8000)}
    by_header = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "8000"}
    for headers in (by_name, by_header):
        wait_for_sync(lambda headers=headers: _get(running, "/hello.txt", headers).text == "hi there")


def test_websockets_pass_the_edge(box: Sandbox, running: Instance) -> None:
    """A WebSocket server inside talks with a client outside, in both directions."""
    box.files.write("/home/user/echo.py", ECHO_SERVER)
    box.commands.run("python3 /home/user/echo.py", background=True)
    url = running.sandbox_url.replace("http", "ws")
    headers = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "9000"}
    wait_for_sync(lambda: _get(running, "/", headers).status_code != 502)
    with websockets.sync.client.connect(url, additional_headers=headers, proxy=None) as socket:
        socket.send("ping")
        assert socket.recv() == "ping"


def test_precise_errors_at_the_edge(box: Sandbox, running: Instance) -> None:
    """A closed port, an unknown sandbox and a control route are told apart."""
    closed = _get(running, "/", {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "8123"})
    assert (closed.status_code, closed.json()["message"]) == (502, "The sandbox is running but port is not open")
    unknown = _get(running, "/", {"E2b-Sandbox-Id": "i" + "0" * 20, "E2b-Sandbox-Port": "80"})
    assert unknown.status_code == 502
    assert "was not found" in unknown.json()["message"]
    control = _get(running, "/init", {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49983"})
    assert control.status_code == 404


def test_an_ended_sandbox_is_gone_at_once(running: Instance) -> None:
    """After kill the sandbox does not run, is not listed, and its commands' streams break."""
    box = Sandbox.create(timeout=LIFETIME_S, **running.sdk)
    ended = threading.Event()

    def follow() -> None:
        try:
            box.commands.run("sleep 1000", timeout=0)
        except SandboxException:
            ended.set()

    follower = threading.Thread(target=follow)
    follower.start()
    wait_for_sync(lambda: len(box.commands.list()) == 1)
    assert box.kill()
    assert not box.is_running()
    assert not Sandbox.kill(box.sandbox_id, **running.sdk)
    follower.join(timeout=30 * SLOWNESS)
    assert ended.is_set()
    with pytest.raises(NotFoundException):
        Sandbox.get_info(box.sandbox_id, **running.sdk)


def test_timeouts_end_sandboxes_and_connect_never_shortens(running: Instance) -> None:
    """set_timeout moves the end both ways, connect only later; at its end the sandbox is gone."""
    box = Sandbox.create(timeout=LIFETIME_S, **running.sdk)
    end = box.get_info().end_at
    Sandbox.connect(box.sandbox_id, timeout=5, **running.sdk)
    assert box.get_info().end_at == end
    box.set_timeout(2 * LIFETIME_S)
    assert box.get_info().end_at > end
    box.set_timeout(1)
    wait_for_sync(lambda: not box.is_running())
    assert _ids(running) == []


def test_info_and_list_tell_what_was_asked(running: Instance) -> None:
    """Metadata filters, states, sizes, and the runtime with its isolation class."""
    with Sandbox.create(timeout=LIFETIME_S, metadata={"a b": "c&d"}, **running.sdk) as box:
        from e2b import SandboxQuery

        pages = Sandbox.list(query=SandboxQuery(metadata={"a b": "c&d"}), **running.sdk)
        assert [item.sandbox_id for item in pages.next_items()] == [box.sandbox_id]
        assert Sandbox.list(query=SandboxQuery(metadata={"a b": "x"}), **running.sdk).next_items() == []
        info = box.get_info()
        assert (info.name, info.metadata, info.state.value) == ("base", {"a b": "c&d"}, "running")
        assert isinstance(info.started_at, datetime)
        raw = running.api("GET", f"/sandboxes/{box.sandbox_id}").json()
        assert raw["runtime"] == running.env["FIREBRICK_RUNTIME"]
        assert raw["isolation"] == RuntimeName(raw["runtime"]).isolation.value


def test_a_crowd_created_at_once_is_all_real(running: Instance) -> None:
    """Twenty sandboxes created at the same time (in an emulated machine, as many as it holds) all answer, each with an
    identity of its own."""

    def one(number: int) -> str:
        with Sandbox.create(timeout=LIFETIME_S, **running.sdk) as box:
            box.files.write("/home/user/n", str(number))
            assert box.commands.run("cat /home/user/n").stdout == str(number)
            return box.sandbox_id

    with ThreadPoolExecutor(running.crowd_count) as pool:
        assert len(set(pool.map(one, range(running.crowd_count)))) == running.crowd_count


def test_sandboxes_do_not_reach_the_host_or_each_other(box: Sandbox, running: Instance) -> None:
    """From inside, neither the API, nor the node's address of a neighbour, nor a metadata service answers."""
    with Sandbox.create(timeout=LIFETIME_S, **running.sdk) as neighbour:
        route = "ip route get 1.2.3.4 2>/dev/null | head -1"
        gateway = "169.254.0.22"
        port = running.api_url.rpartition(":")[2]
        targets = [f"{gateway}:{port}", "169.254.169.254:80", f"{_slot_address(running)}:49983"]
        for target in targets:
            probe = f"curl -s -m 2 -o /dev/null -w '%{{http_code}}' http://{target}/health; true"
            assert box.commands.run(probe).stdout in ("000", ""), f"{target} answers; {box.commands.run(route).stdout}"
        assert neighbour.is_running()


def test_a_file_url_signed_by_the_sdk_works_without_headers(box: Sandbox, running: Instance) -> None:
    """download_url names no sandbox when one edge serves all: the edge finds it by its signature."""
    box.files.write("/home/user/signed.txt", "signed")
    answer = httpx.get(box.download_url("/home/user/signed.txt"), trust_env=False)
    assert (answer.status_code, answer.text) == (200, "signed")
    tampered = box.download_url("/home/user/signed.txt").replace("signed.txt", "other.txt")
    assert httpx.get(tampered, trust_env=False).status_code == 401


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda sdk: Sandbox.create("no-such-template", **sdk), "template 'no-such-template' not found"),
        (lambda sdk: Sandbox.create(timeout=-1, **sdk), "Timeout must be greater than 0"),
        (lambda sdk: Sandbox.create(metadata={"big": "x" * 10_000_000}, **sdk), "metadata|large"),
        (lambda sdk: Sandbox.create(**(sdk | {"api_key": "e2b_" + "0" * 40})), "401"),
    ],
    ids=["unknown template", "negative timeout", "10 MB of metadata", "wrong key"],
)
def test_bad_input_is_told_clearly(running: Instance, call: Callable[[dict[str, str]], Sandbox], told: str) -> None:
    """What cannot be done is refused with a sentence that says why, through the SDK's own exceptions."""
    with pytest.raises(Exception, match=told) as caught:
        call(running.sdk)
    assert not isinstance(caught.value, TypeError)


def test_unknown_users_and_directories_are_refused(box: Sandbox) -> None:
    """A command for a user or in a directory that is not there fails before it starts."""
    with pytest.raises(Exception, match="invalid username: 'nobody-here'"):
        box.commands.run("true", user="nobody-here")
    with pytest.raises(InvalidArgumentException, match="/nowhere"):
        box.commands.run("true", cwd="/nowhere")


ECHO_SERVER = """
import base64, hashlib, socket
server = socket.create_server(("0.0.0.0", 9000))
while True:
    peer, _ = server.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        more = peer.recv(4096)
        if not more:
            break
        head += more
    key = [l.split(b":", 1)[1].strip() for l in head.split(b"\\r\\n") if l.lower().startswith(b"sec-websocket-key")]
    if not key:
        peer.sendall(b"HTTP/1.1 400 Bad\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
        peer.close()
        continue
    accept = base64.b64encode(hashlib.sha1(key[0] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    peer.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                 b"Sec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
    while True:
        frame = peer.recv(4096)
        if not frame or frame[0] & 15 == 8:
            break
        size, mask = frame[1] & 127, frame[2:6]
        text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(frame[6:6 + size]))
        peer.sendall(bytes([0x81, len(text)]) + text)
    peer.close()
"""


def _get(running: Instance, path: str, headers: dict[str, str]) -> httpx.Response:
    return httpx.get(running.sandbox_url + path, headers=headers, trust_env=False, timeout=20 * SLOWNESS)


def _ids(running: Instance) -> list[str]:
    return [item["sandboxID"] for item in running.api("GET", "/v2/sandboxes").json()]


def _slot_address(running: Instance) -> str:
    """Some slot's address on the host: the first of the instance's prefix that is routed to a link."""
    import ipaddress

    return str(next(ipaddress.ip_network(running.env["FIREBRICK_NETWORK_PREFIX"]).hosts()))
