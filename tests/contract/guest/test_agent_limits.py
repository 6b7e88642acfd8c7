"""A guest at its limits: the agent goes on answering and tells which limit it was."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.contract.guest.agent import ACCESS_TOKEN, CONTROL_TOKEN, Agent, start_message
from tests.support.wait import wait_for_sync

PROCESS_LIMIT = 600
OWN_CONNECTIONS = 1500


@pytest.fixture
def bounded_agent() -> Iterator[Agent]:
    """An agent whose machine may have few processes, as a runtime starts it."""
    agent = Agent(["prlimit", f"--nproc={PROCESS_LIMIT}", sys.executable, "-S", "-B", "-m", "firebrick_guest.main"])
    try:
        # An account that nobody else uses: the kernel counts a user's processes over the whole computer.
        agent.init(defaultUser="bin")
        yield agent
    finally:
        assert agent.stop() == 0


def log_entries(agent: Agent) -> list[dict[str, object]]:
    headers = {"X-Firebrick-Control": CONTROL_TOKEN}
    entries: list[dict[str, object]] = agent.http.get("/firebrick/logs", headers=headers).json()["entries"]
    return entries


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")
def test_who_forks_without_end_leaves_room_for_others(bounded_agent: Agent) -> None:
    """While one command holds all the processes it may have, others start, fork and end as ever."""
    agent = bounded_agent
    handle = agent.sandbox().commands.run("while :; do sleep 300 & done", background=True)
    told = ""
    for _, stderr, _ in handle:
        told += stderr or ""
        if "Resource temporarily unavailable" in told:
            break
    for _ in range(5):
        assert agent.run("/bin/sh", "-c", "/bin/echo one; /bin/echo two | /bin/cat")[0] == b"one\ntwo\n"
    metrics = agent.request("GET", "/metrics").json()
    assert metrics["process_limit"] == PROCESS_LIMIT
    assert metrics["process_count"] > PROCESS_LIMIT // 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")
def test_a_start_beyond_the_limit_names_it(bounded_agent: Agent) -> None:
    """When nothing at all can be started the error says which limit is reached, and so do log and metrics."""
    agent = bounded_agent
    script = f"ulimit -u {PROCESS_LIMIT} 2>&1; for i in $(seq {PROCESS_LIMIT}); do sleep 300 & done; wait"
    agent.sandbox().commands.run(script, background=True).disconnect()
    wait_for_sync(lambda: "error" in agent.stream("process.Process/Start", start_message("/bin/true"))[0][1])
    error = agent.stream("process.Process/Start", start_message("/bin/true"))[0][1]["error"]
    assert error["code"] == "resource_exhausted"
    assert f"the sandbox's limit of {PROCESS_LIMIT} processes is reached" in error["message"]
    assert agent.request("GET", "/metrics").json()["limit_hits"]["processes"] >= 1
    assert [entry["fields"] for entry in log_entries(agent) if entry["message"] == "limit reached"]
    assert agent.unary("filesystem.Filesystem/Stat", {"path": "/tmp"}).status_code == 200


def test_a_guest_cannot_take_all_connections(closed_agent: Agent) -> None:
    """A program inside that opens connections without end leaves some to those who come from outside."""
    agent = closed_agent
    agent.init()
    with ExitStack() as stack:
        opened = []
        for _ in range(OWN_CONNECTIONS + 10):
            opened.append(stack.enter_context(socket.create_connection(("127.0.0.1", agent.port), timeout=20)))
        refused = [connection for connection in opened[-12:] if is_refused(connection)]
        assert refused
        outside = stack.enter_context(
            socket.create_connection(("127.0.0.1", agent.port), timeout=20, source_address=("127.0.0.2", 0))
        )
        outside.sendall(f"GET /metrics HTTP/1.1\r\nX-Access-Token: {ACCESS_TOKEN}\r\n\r\n".encode())
        assert b'"connections":' in outside.recv(65536)
    wait_for_sync(lambda: agent.http.get("/health").status_code == 204)


def is_refused(connection: socket.socket) -> bool:
    connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True
