"""Streams of output: what late readers get, what many and slow readers cost, how small output is gathered."""

import base64
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox

from tests.contract.guest.agent import ACCESS_TOKEN, Agent, start_message
from tests.support.wait import wait_for_sync

STREAM_COUNT = 500


def events(frames: list[tuple[int, Any]]) -> list[dict[str, Any]]:
    return [message["event"] for flags, message in frames if flags == 0]


def output(frames: list[tuple[int, Any]]) -> bytes:
    pieces = [event["data"]["stdout"] for event in events(frames) if "data" in event]
    return b"".join(map(base64.b64decode, pieces))


def start_and_leave(agent: Agent, script: str, **fields: Any) -> int:
    """Start a command and hang up as soon as it runs."""
    body = json.dumps(start_message("/bin/sh", "-c", script, **fields)).encode()
    headers = {"X-Access-Token": ACCESS_TOKEN, "Content-Type": "application/connect+json"}
    with agent.http.stream(
        "POST", "/process.Process/Start", headers=headers, content=b"\0" + len(body).to_bytes(4, "big") + body
    ) as answer:
        first = next(answer.iter_bytes())
    size = int.from_bytes(first[1:5], "big")
    return int(json.loads(first[5 : 5 + size])["event"]["start"]["pid"])


def has_ended(agent: Agent, pid: int) -> bool:
    return pid not in [item["pid"] for item in agent.unary("process.Process/List", {}).json().get("processes", [])]


def test_missed_output_is_replayed_and_then_goes_on(sandbox: Sandbox) -> None:
    """Whoever connects late gets what was printed before, then what follows, in order and once."""
    handle = sandbox.commands.run("seq 1000; read x; echo $x", background=True, stdin=True)
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid)
    sandbox.commands.send_stdin(handle.pid, "live\n")
    assert again.wait().stdout == "".join(f"{number}\n" for number in range(1, 1001)) + "live\n"


def test_the_end_of_a_lost_command_can_be_fetched(agent: Agent) -> None:
    """A command that ended while nobody followed tells its last output and its exit code, as often as asked."""
    pid = start_and_leave(agent, "head -c 1000000 /dev/zero | tr '\\0' x; echo END; exit 5")
    wait_for_sync(lambda: has_ended(agent, pid))
    for _ in range(2):
        frames = agent.stream("process.Process/Connect", {"process": {"pid": pid}})
        assert events(frames)[0] == {"start": {"pid": pid}}
        assert output(frames).endswith(b"xxxEND\n")
        assert 150_000 < len(output(frames)) <= 256 * 1024
        assert events(frames)[-1]["end"]["exitCode"] == 5


def test_our_own_clients_go_on_at_a_byte(agent: Agent) -> None:
    """With Firebrick-Since every event tells its number, a stream starts at the number asked for, and what is lost
    shows as a gap; beyond the end is an error."""
    pid = start_and_leave(agent, "printf abcdef; printf ghi >&2; sleep 0.05; printf jkl")
    wait_for_sync(lambda: has_ended(agent, pid))
    selector = {"process": {"pid": pid}}
    got = events(agent.stream("process.Process/Connect", selector, **{"Firebrick-Since": "4"}))
    assert got[0] == {"start": {"pid": pid, "seq": "4"}}
    seq = 4
    for event in got[1:-1]:
        data = event["data"]
        assert data.pop("seq") == str(seq)
        seq += len(base64.b64decode(next(iter(data.values()))))
    assert seq == 12
    for since, code in (("13", "out_of_range"), ("x", "invalid_argument")):
        frames = agent.stream("process.Process/Connect", selector, **{"Firebrick-Since": since})
        assert frames[0][1]["error"]["code"] == code
    pid = start_and_leave(agent, "head -c 1000000 /dev/zero")
    wait_for_sync(lambda: has_ended(agent, pid))
    got = events(agent.stream("process.Process/Connect", {"process": {"pid": pid}}, **{"Firebrick-Since": "100"}))
    lost = int(got[0]["start"]["seq"]) - 100
    assert lost > 0
    assert 100 + lost + len(output([(0, {"event": event}) for event in got])) == 1_000_000


def test_sixty_thousand_small_lines_are_few_frames(agent: Agent) -> None:
    """Lines of eight bytes are gathered: clients drop connections that carry thousands of tiny frames."""
    script = "import os\nfor _ in range(60000): os.write(1, b'1234567\\n')"
    frames = agent.stream("process.Process/Start", start_message("/usr/bin/python3", "-c", script))
    assert output(frames) == b"1234567\n" * 60_000
    assert len(frames) < 6000


def test_a_gigabyte_passes_with_flat_memory(agent: Agent) -> None:
    """A reader gets a gigabyte whole while the agent's memory stays where it was."""
    before = agent.rss_kib
    peak = total = 0
    with raw_stream(agent, "Start", start_message("/bin/sh", "-c", "head -c 1000000000 /dev/zero")) as connection:
        while piece := connection.recv(1 << 20):
            if (total >> 27) != ((total + len(piece)) >> 27):
                peak = max(peak, agent.rss_kib)
            total += len(piece)
    assert total > 1_333_000_000
    assert peak - before < 20_000


@contextmanager
def raw_stream(agent: Agent, procedure: str, message: object) -> Iterator[socket.socket]:
    """A request for a stream that nobody reads unless the test does; the agent closes at its end."""
    body = json.dumps(message).encode()
    head = f"POST /process.Process/{procedure} HTTP/1.1\r\nX-Access-Token: {ACCESS_TOKEN}\r\nConnection: close\r\n"
    head += f"Content-Type: application/connect+json\r\nContent-Length: {len(body) + 5}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", agent.port), timeout=20) as connection:
        connection.sendall(head.encode() + b"\0" + len(body).to_bytes(4, "big") + body)
        yield connection


def test_five_hundred_slow_readers_cost_little(agent: Agent) -> None:
    """Streams that nobody reads hold a share of a common bound, and others are served meanwhile."""
    before = agent.rss_kib
    with ExitStack() as stack:
        noisy = start_message("/bin/sh", "-c", "exec head -c 100000000 /dev/zero")
        for _ in range(STREAM_COUNT // 10):
            stack.enter_context(raw_stream(agent, "Start", noisy))
        processes = lambda: agent.unary("process.Process/List", {}).json().get("processes", [])  # noqa: E731
        wait_for_sync(lambda: len(processes()) == STREAM_COUNT // 10)
        for process in processes() * 9:
            stack.enter_context(raw_stream(agent, "Connect", {"process": {"pid": process["pid"]}}))
        assert agent.run("/bin/echo", "served")[0] == b"served\n"
        assert agent.rss_kib - before < 80_000
        pids = [process["pid"] for process in processes()]
    for pid in pids:
        kill(agent, pid)
    assert processes() == []


def test_five_hundred_streams_end_together(agent: Agent) -> None:
    """Five hundred clients follow one command; each gets all of it and its end."""
    pid = start_and_leave(agent, "read x; seq 100; exit 3", stdin=True)
    message = {"process": {"pid": pid}}
    with ExitStack() as stack:
        streams = [stack.enter_context(raw_stream(agent, "Connect", message)) for _ in range(STREAM_COUNT)]
        for stream in streams:
            assert b'"start"' in stream.recv(65536)
        agent.unary("process.Process/SendInput", {**message, "input": {"stdin": "Cg=="}})
        for stream in streams:
            body = b""
            while piece := stream.recv(65536):
                body += piece
            assert b'"exitCode":3' in body
            assert base64.b64encode(b"1\n2\n3\n")[:-2] in body


def test_a_storm_of_reconnects_leaves_nothing(agent: Agent) -> None:
    """Clients that connect and hang up at once, hundreds of times, leave no stream, no memory and no harm."""
    pid = start_and_leave(agent, "while read x; do echo $x; done", stdin=True)
    message = {"process": {"pid": pid}}

    def knock(_: int) -> None:
        with raw_stream(agent, "Connect", message) as connection:
            connection.recv(1)

    knock(0)
    before, sockets = agent.rss_kib, agent.socket_count
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(knock, range(1000)))
    wait_for_sync(lambda: agent.socket_count <= sockets)
    assert agent.rss_kib - before < 10_000
    assert agent.unary("process.Process/CloseStdin", message).status_code == 200
    wait_for_sync(lambda: has_ended(agent, pid))


def test_cancelled_requests_are_let_go(agent: Agent) -> None:
    """A request given up in its middle costs its connection and nothing else; a half-closed one is answered."""
    body = json.dumps(start_message("/bin/echo", "half")).encode()
    head = f"POST /process.Process/Start HTTP/1.1\r\nX-Access-Token: {ACCESS_TOKEN}\r\nConnection: close\r\n"
    head += f"Content-Type: application/connect+json\r\nContent-Length: {len(body) + 5}\r\n\r\n"
    whole = head.encode() + b"\0" + len(body).to_bytes(4, "big") + body
    before = agent.socket_count
    for size in (10, len(head) - 1, len(head) + 3, len(whole) - 1):
        with socket.create_connection(("127.0.0.1", agent.port), timeout=20) as connection:
            connection.sendall(whole[:size])
    wait_for_sync(lambda: agent.socket_count <= before)
    with socket.create_connection(("127.0.0.1", agent.port), timeout=20) as connection:
        connection.sendall(whole)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert base64.b64encode(b"half\n") in answer


def test_thousands_of_processes(agent: Agent) -> None:
    """A thousand commands run side by side, are listed, and those that print share one bound of memory."""
    before = agent.rss_kib
    script = "head -c 100000 /dev/zero; exec sleep 100"
    with ThreadPoolExecutor(max_workers=8) as pool:
        pids = list(pool.map(lambda _: start_and_leave(agent, script), range(1000)))
    listed = {item["pid"] for item in agent.unary("process.Process/List", {}).json()["processes"]}
    assert set(pids) <= listed
    assert agent.rss_kib - before < 60_000
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda pid: kill(agent, pid), pids))
    assert agent.unary("process.Process/List", {}).json().get("processes", []) == []


def kill(agent: Agent, pid: int) -> None:
    answer = agent.unary("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("_round", range(3))
def test_a_kill_is_done_when_it_is_answered(agent: Agent, _round: int) -> None:
    """The killed process is no more when the answer comes: nothing to wait for, nothing to poll."""
    pid = start_and_leave(agent, "exec sleep 100")
    kill(agent, pid)
    assert not Path(f"/proc/{pid}").exists()
