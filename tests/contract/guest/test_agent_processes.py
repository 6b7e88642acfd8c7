"""Commands: over the wire as the protocol has it, and through the official SDK."""

import base64
import os
import pwd
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from e2b import AuthenticationException, CommandExitException, Sandbox, TimeoutException
from e2b.exceptions import InvalidArgumentException, NotFoundException
from e2b.sandbox.commands.command_handle import PtySize

from tests.contract.guest.agent import ACCESS_TOKEN, Agent, parents, split_frames, start_message
from tests.support.wait import wait_for_sync


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_command_is_start_then_data_then_end(agent: Agent) -> None:
    """The stream is exactly one start, the output, one end and the end-of-stream envelope."""
    frames = agent.stream("process.Process/Start", start_message("/bin/echo", "hi"))
    kinds = [next(iter(message["event"])) for flags, message in frames if flags == 0]
    assert kinds == ["start", "data", "end"]
    assert frames[-1] == (2, {})
    assert frames[-2][1]["event"]["end"] == {"exitCode": 0, "exited": True, "status": "exit status 0"}


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ("exit 7", {"exitCode": 7, "exited": True, "status": "exit status 7", "error": "exit status 7"}),
        ("kill -9 $$", {"exitCode": -1, "exited": False, "status": "signal: killed", "error": "signal: killed"}),
        (
            "kill -15 $$",
            {"exitCode": -1, "exited": False, "status": "signal: terminated", "error": "signal: terminated"},
        ),
    ],
)
def test_ends(agent: Agent, script: str, end: dict[str, object]) -> None:
    """Codes and signals are told as E2B tells them."""
    assert agent.run("/bin/sh", "-c", script)[1] == end


@pytest.mark.parametrize(
    ("program", "code"), [("/no/such/program", 127), ("no-such-program", 127), ("/etc/passwd", 126)]
)
def test_what_cannot_be_executed_ends_as_in_a_shell(agent: Agent, program: str, code: int) -> None:
    """A missing program is 127, one that is none 126, with the reason on standard error."""
    output, end = agent.run(program)
    assert end["exitCode"] == code
    assert program.encode() in output


def test_the_environment_is_the_users_and_nothing_of_ours(agent: Agent) -> None:
    """Own ids, groups, home and variables; no token, descriptor, capability or ignored signal of the agent."""
    account = pwd.getpwnam(agent.user)
    output, _ = agent.run("/usr/bin/env", envs={"MINE": "é=1"})
    env = dict(line.split("=", 1) for line in output.decode().splitlines())
    assert env["MINE"] == "é=1"
    assert (env["HOME"], env["USER"], env["LOGNAME"]) == (account.pw_dir, agent.user, agent.user)
    assert (env["E2B_SANDBOX"], env["E2B_SANDBOX_ID"]) == ("true", "sbx")
    assert not any(name.startswith(("FIREBRICK", "PYTHON", "LD_", "MALLOC")) for name in env)
    output, _ = agent.run(
        "/bin/sh", "-c", "id -u; id -g; id -G; pwd; umask; ulimit -n; ls /proc/self/fd; cat /proc/self/status"
    )
    uid, gid, groups, cwd, umask, limit, *rest = output.decode().splitlines()
    assert (int(uid), int(gid), cwd, umask) == (account.pw_uid, account.pw_gid, account.pw_dir, "0022")
    assert {int(group) for group in groups.split()} == set(os.getgrouplist(agent.user, account.pw_gid))
    assert int(limit) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert rest[:4] == ["0", "1", "2", "3"]
    status = dict(line.split(":", 1) for line in rest[4:] if ":" in line)
    assert set(status["Uid"].split()) == {uid}
    assert set(status["Gid"].split()) == {gid}
    assert int(status["SigIgn"], 16) == int(status["SigBlk"], 16) == 0
    if account.pw_uid:
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")
def test_the_agent_is_root_again_after_each_start(agent: Agent) -> None:
    """Starting commands as a user leaves the agent's own ids and groups as they were."""
    status = Path(f"/proc/{agent.process.pid}/status")
    wanted = [line for line in status.read_text().splitlines() if line.startswith(("Uid", "Gid", "Groups", "Cap"))]
    agent.run("/bin/true")
    agent.run("/no/such/program")
    assert [
        line for line in status.read_text().splitlines() if line.startswith(("Uid", "Gid", "Groups", "Cap"))
    ] == wanted
    assert wanted[0].split()[1:] == ["0"] * 4


def test_a_bad_request_names_what_is_wrong(agent: Agent) -> None:
    """A missing directory, an unknown user and nonsense are errors inside the stream."""
    for fields, code, words in (
        ({"cwd": "/no/where"}, "invalid_argument", "cwd '/no/where' does not exist"),
        ({"envs": {"A=B": "x"}}, "invalid_argument", "variable"),
        ({"tag": 5}, "invalid_argument", "tag"),
    ):
        frames = agent.stream("process.Process/Start", start_message("/bin/true", **fields))
        assert frames[0][0] == 2
        assert frames[0][1]["error"]["code"] == code
        assert words in frames[0][1]["error"]["message"]
    user = base64.b64encode(b"nobody-here:").decode()
    frames = agent.stream("process.Process/Start", start_message("/bin/true"), Authorization=f"Basic {user}")
    assert frames[0][1]["error"] == {"code": "unauthenticated", "message": "invalid username: 'nobody-here'"}


def test_unknown_processes_are_not_found(agent: Agent) -> None:
    """Only what was started here can be followed, fed or signalled: not PID 1, not the agent itself."""
    for pid in (1, agent.process.pid, 2**31):
        selector = {"process": {"pid": pid}}
        for procedure in ("SendInput", "SendSignal", "CloseStdin", "Update"):
            answer = agent.unary(f"process.Process/{procedure}", selector)
            assert answer.json() == {"code": "not_found", "message": f"process with pid {pid} not found"}
        assert agent.stream("process.Process/Connect", selector)[0][1]["error"]["code"] == "not_found"
    assert "tag nope" in agent.unary("process.Process/SendSignal", {"process": {"tag": "nope"}}).json()["message"]


def test_a_command_that_ended_can_still_be_asked_how(agent: Agent) -> None:
    """Connecting late replays the start and the end; output that nobody read is replayed too."""
    headers = {"X-Access-Token": ACCESS_TOKEN, "Content-Type": "application/connect+json"}
    with agent.http.stream(
        "POST", "/process.Process/Start", headers=headers,
        content=envelope('{"process":{"cmd":"/bin/sh","args":["-c","read x; echo late; exit 4"]},"tag":"t"}'),
    ) as answer:  # fmt: skip
        first = next(answer.iter_bytes())
    pid = split_frames(first)[0][1]["event"]["start"]["pid"]
    assert agent.unary("process.Process/List", {}).json()["processes"][0]["tag"] == "t"
    agent.unary("process.Process/SendInput", {"process": {"tag": "t"}, "input": {"stdin": "Cg=="}})
    wait_for_sync(lambda: agent.unary("process.Process/List", {}).json() == {"processes": []})
    frames = agent.stream("process.Process/Connect", {"process": {"pid": pid}})
    assert frames[0][1]["event"]["start"]["pid"] == pid
    assert frames[1][1]["event"]["data"]["stdout"] == base64.b64encode(b"late\n").decode()
    assert frames[2][1]["event"]["end"]["exitCode"] == 4


def envelope(text: str) -> bytes:
    return b"\0" + len(text).to_bytes(4, "big") + text.encode()


def test_a_silent_command_is_kept_alive(agent: Agent) -> None:
    """While nothing is printed a keepalive comes in the interval that the client asked for."""
    frames = agent.stream(
        "process.Process/Start", start_message("/bin/sleep", "1.3"), **{"Keepalive-Ping-Interval": "1"}
    )
    assert [message["event"] for _, message in frames[:-1]].count({"keepalive": {}}) == 1


def test_input_can_be_streamed(agent: Agent) -> None:
    """StreamInput feeds a command with many messages of one request."""
    handle = agent.sandbox().commands.run("wc -c", background=True, stdin=True)
    selector = f'{{"start":{{"process":{{"pid":{handle.pid}}}}}}}'
    data = base64.b64encode(b"x" * 50_000).decode()
    pieces = [f'{{"data":{{"input":{{"stdin":"{data}"}}}}}}'] * 10
    body = b"".join(map(envelope, [selector, '{"keepalive":{}}', *pieces]))
    answer = agent.frames("process.Process/StreamInput", body)
    assert split_frames(answer.content) == [(0, {}), (2, {})]
    agent.unary("process.Process/CloseStdin", {"process": {"pid": handle.pid}})
    assert handle.wait().stdout.strip() == "500000"


def test_output_arrives_whole(sandbox: Sandbox) -> None:
    """Broken UTF-8, both streams and tens of megabytes come through complete."""
    result = sandbox.commands.run("printf 'a%.0s' $(seq 8191); printf '\\xe2'; echo oops >&2")
    assert len(result.stdout) == 8192
    assert result.stderr == "oops\n"
    assert len(sandbox.commands.run("head -c 20000000 /dev/zero | tr '\\0' x", timeout=60).stdout) == 20_000_000


def test_output_that_nobody_reads_blocks_nothing(agent: Agent, folder: str) -> None:
    """A command without a reader runs to its end, and the agent's memory does not grow with what it prints."""
    before = agent.rss_kib
    handle = agent.sandbox().commands.run(f"head -c 200000000 /dev/zero; touch {folder}/done", background=True)
    handle.disconnect()
    wait_for_sync(lambda: Path(folder, "done").exists())
    assert agent.rss_kib - before < 20_000


def test_a_slow_reader_slows_the_command_and_nothing_else(agent: Agent) -> None:
    """A client that stops reading makes its command wait; memory stays flat and others are served."""
    before = agent.rss_kib
    message = envelope('{"process":{"cmd":"/bin/sh","args":["-c","head -c 300000000 /dev/zero"]}}')
    head = f"POST /process.Process/Start HTTP/1.1\r\nX-Access-Token: {ACCESS_TOKEN}\r\n"
    head += f"Content-Type: application/connect+json\r\nContent-Length: {len(message)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", agent.port), timeout=20) as connection:
        connection.sendall(head.encode() + message)
        for _ in range(20):
            assert agent.run("/bin/echo", "x")[0] == b"x\n"
        assert agent.rss_kib - before < 20_000
        assert len(agent.unary("process.Process/List", {}).json()["processes"]) == 1
    wait_for_sync(lambda: agent.unary("process.Process/List", {}).json() == {"processes": []})


def test_exit_codes_and_errors_become_the_sdks_exceptions(sandbox: Sandbox) -> None:
    """The SDK raises what its documentation says."""
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("echo out; echo err >&2; exit 3")
    assert (failed.value.exit_code, failed.value.stdout, failed.value.stderr) == (3, "out\n", "err\n")
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
        sandbox.commands.run("true", user="nobody-here")
    with pytest.raises(InvalidArgumentException, match="does not exist"):
        sandbox.commands.run("true", cwd="/no/where")


def test_a_timeout_kills(sandbox: Sandbox) -> None:
    """When the time is over the SDK raises TimeoutException and the command is dead."""
    handle = sandbox.commands.run("exec sleep 30", timeout=1, background=True)
    started = time.monotonic()
    with pytest.raises(TimeoutException):
        handle.wait()
    assert time.monotonic() - started < 3
    wait_for_sync(lambda: not is_alive(handle.pid))


def test_a_killed_command_is_gone_at_once(sandbox: Sandbox) -> None:
    """After kill no zombie is left that `kill -0` would find; a second kill finds nothing."""
    handle = sandbox.commands.run("sleep 30", background=True)
    assert [process.pid for process in sandbox.commands.list()] == [handle.pid]
    assert sandbox.commands.kill(handle.pid) is True
    wait_for_sync(lambda: not is_alive(handle.pid))
    assert sandbox.commands.list() == []
    assert sandbox.commands.kill(handle.pid) is False
    with pytest.raises(CommandExitException) as ended:
        handle.wait()
    assert (ended.value.exit_code, ended.value.error) == (-1, "signal: killed")


def test_standard_input(sandbox: Sandbox) -> None:
    """Input passes unbuffered and unchanged; without it a command reads the end at once."""
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    text = "é" * 40_000
    sandbox.commands.send_stdin(handle.pid, text)
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == text
    assert sandbox.commands.run("cat").stdout == ""
    with pytest.raises(NotFoundException):
        sandbox.commands.send_stdin(handle.pid, "x")


def test_a_background_child_holds_the_stream_until_it_is_killed(agent: Agent) -> None:
    """While a child of an exited command holds the output, the command runs on; a signal through us ends it."""
    handle = agent.sandbox().commands.run("sleep 30 & echo $!", background=True)
    pids: list[str] = []
    for stdout, _, _ in handle:
        if stdout:
            pids.append(stdout)
            break
    wait_for_sync(lambda: not is_alive(handle.pid))
    assert agent.sandbox().commands.kill(handle.pid) is True
    os.kill(int(pids[0]), 9)
    wait_for_sync(lambda: not is_alive(int(pids[0])))


def test_disconnecting_leaves_the_command_running_and_connect_goes_on(sandbox: Sandbox) -> None:
    """A stream may go and another come: the second sees the end."""
    handle = sandbox.commands.run("read x; echo $x", background=True, stdin=True)
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid)
    sandbox.commands.send_stdin(handle.pid, "back\n")
    assert again.wait().stdout == "back\n"


def test_many_commands_at_once(agent: Agent) -> None:
    """A hundred commands run side by side and each gets its own output."""
    with ThreadPoolExecutor(max_workers=32) as pool:
        outputs = list(pool.map(lambda index: agent.run("/bin/echo", str(index))[0], range(100)))
    assert outputs == [b"%d\n" % index for index in range(100)]


def test_a_terminal(sandbox: Sandbox) -> None:
    """A PTY has its size before the shell starts, resizes, takes input and ends with the shell's code."""
    pieces: list[bytes] = []
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"PS1": "$ "}, timeout=30)
    sandbox.pty.send_stdin(handle.pid, b"stty size\n")
    for _, _, data in handle:
        pieces.append(data or b"")
        if b"24 80" in b"".join(pieces):
            break
    sandbox.pty.resize(handle.pid, PtySize(rows=30, cols=100))
    sandbox.pty.send_stdin(handle.pid, b"stty size; test -t 0 && echo is-a-tty-$((1+1)); exit\n")
    result = handle.wait(on_pty=pieces.append)
    assert result.exit_code == 0
    assert b"30 100" in b"".join(pieces)
    assert b"is-a-tty-2" in b"".join(pieces)


def test_what_a_terminal_cannot(agent: Agent) -> None:
    """Resizing pipes and closing a terminal's input are refused as E2B refuses them."""
    sandbox = agent.sandbox()
    pipe = sandbox.commands.run("sleep 30", background=True)
    answer = agent.unary(
        "process.Process/Update", {"process": {"pid": pipe.pid}, "pty": {"size": {"cols": 1, "rows": 1}}}
    )
    assert answer.json()["message"] == "error resizing tty: tty not assigned to process"
    answer = agent.unary("process.Process/SendInput", {"process": {"pid": pipe.pid}, "input": {"stdin": "YQ=="}})
    assert answer.json()["message"] == "error writing to stdin: stdin not enabled or closed"
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    answer = agent.unary("process.Process/CloseStdin", {"process": {"pid": terminal.pid}})
    assert answer.json()["message"].startswith("error closing stdin: cannot close stdin for PTY process")
    for handle in (pipe, terminal):
        assert sandbox.commands.kill(handle.pid)
    size = {"cols": 65536, "rows": 1}
    frames = agent.stream("process.Process/Start", start_message("/bin/true", pty={"size": size}))
    assert frames[0][1]["error"]["code"] == "invalid_argument"


def test_orphans_are_reaped(agent: Agent) -> None:
    """A grandchild whose parent has ended comes to the agent and leaves no zombie."""
    output, _ = agent.run("/bin/sh", "-c", "(sh -c 'echo $$; exec sleep 0.2' &) ")
    wait_for_sync(lambda: not is_alive(int(output)))


def test_ending_the_agent_ends_everything_quickly() -> None:
    """SIGTERM kills every process, even those that left their session, and the agent exits with 0."""
    agent = Agent()
    agent.init()
    handle = agent.sandbox().commands.run("setsid sleep 300 & setsid sh -c 'sleep 301' & sleep 302", background=True)
    wait_for_sync(lambda: len(descendants(agent.process.pid)) >= 4)
    pids = descendants(agent.process.pid)
    started = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - started < 3
    assert handle.pid in pids
    assert not [pid for pid in pids if is_alive(pid)]


def descendants(root: int) -> set[int]:
    tree = parents()
    found = {root}
    while more := {pid for pid, parent in tree.items() if parent in found} - found:
        found |= more
    return found - {root}
