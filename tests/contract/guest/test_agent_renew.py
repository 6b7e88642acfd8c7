"""A machine that goes on from saved memory: the guest agent takes what is its own, and lets go of the rest."""

import asyncio
import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from firebrick_guest.quiet import TICK_S, Quiet
from tests.contract.guest.agent import ACCESS_TOKEN, CONTROL_TOKEN, Agent, start_message
from tests.support.wait import wait_for_sync

NEW_TOKEN = "new-control-token"
ENTROPY = base64.b64encode(bytes(range(64))).decode()


def now() -> str:
    whole, fraction = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:09d}Z"


def ask(agent: Agent, path: str, token: str = CONTROL_TOKEN, **body: Any) -> httpx.Response:
    return agent.http.post(path, json=body or None, headers={"X-Firebrick-Control": token})


def renew(agent: Agent, token: str = CONTROL_TOKEN, **changes: Any) -> httpx.Response:
    body = {"controlToken": NEW_TOKEN, "timestamp": now(), "entropy": ENTROPY, "other": True}
    return ask(agent, "/firebrick/renew", token, **{**body, **changes})


@pytest.fixture
def own_agent() -> Iterator[Agent]:
    """An agent of one's own that has its settings."""
    fresh = Agent()
    try:
        assert fresh.init(envVars={"A": "1"}).status_code == 204
        yield fresh
    finally:
        assert fresh.stop() == 0


def test_the_former_token_opens_nothing_any_more(own_agent: Agent) -> None:
    """The token in the memory serves for one request; the new one serves from then on."""
    assert renew(own_agent, "wrong").status_code == 401
    assert renew(own_agent).status_code == 200
    assert renew(own_agent).status_code == 401
    assert ask(own_agent, "/firebrick/go-on").status_code == 401
    assert ask(own_agent, "/firebrick/go-on", NEW_TOKEN).status_code == 204


def test_another_sandbox_starts_closed_and_without_settings(own_agent: Agent) -> None:
    """Neither the former access token nor its variables nor its log are the other's; its /init may even be older."""
    assert renew(own_agent).status_code == 200
    assert own_agent.request("GET", "/envs").status_code == 503
    logs = own_agent.http.get("/firebrick/logs?since=0", headers={"X-Firebrick-Control": NEW_TOKEN}).json()
    assert logs["entries"] == []
    body = {"accessToken": "other", "sandboxID": "other", "timestamp": "2020-01-01T00:00:00Z"}
    assert ask(own_agent, "/init", NEW_TOKEN, **body).status_code == 204
    assert own_agent.request("GET", "/envs").status_code == 401
    found = own_agent.http.get("/envs", headers={"X-Access-Token": "other"}).json()
    assert found == {"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": "other", "E2B_TEMPLATE_ID": ""}


def test_the_same_sandbox_keeps_its_settings(own_agent: Agent) -> None:
    """A sandbox that goes on itself is what it was."""
    assert renew(own_agent, other=False).status_code == 200
    assert own_agent.request("GET", "/envs").json()["A"] == "1"


def test_connections_to_the_former_machine_are_cut(own_agent: Agent) -> None:
    """Whoever held one reads its end; processes go on."""
    request = start_message("sleep", "1000")
    with socket.create_connection(("127.0.0.1", own_agent.port), timeout=20) as idle:
        body = own_agent.http.build_request("POST", "/process.Process/Start", json=request).read()
        frame = b"\0" + len(body).to_bytes(4, "big") + body
        head = f"POST /process.Process/Start HTTP/1.1\r\nHost: x\r\nX-Access-Token: {ACCESS_TOKEN}\r\n"
        head += f"Content-Type: application/connect+json\r\nContent-Length: {len(frame)}\r\n\r\n"
        idle.sendall(head.encode() + frame)
        assert idle.recv(65536)
        assert renew(own_agent, other=False).status_code == 200
        with suppress(ConnectionResetError):
            while idle.recv(65536):
                pass
    assert len(own_agent.unary("process.Process/List", {}).json()["processes"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"entropy": base64.b64encode(bytes(63)).decode()}, {"entropy": base64.b64encode(bytes(513)).decode()},
        {"entropy": "*"}, {"entropy": "é"}, {"entropy": 7}, {"controlToken": ""}, {"controlToken": 1},
        {"timestamp": ""}, {"timestamp": "yesterday"}, {"other": "yes"},
    ],
)  # fmt: skip
def test_a_senseless_renewal_changes_nothing(agent: Agent, body: dict[str, Any]) -> None:
    """Nonsense is refused as a whole."""
    assert renew(agent, **body).status_code == 400
    assert agent.request("GET", "/envs").status_code == 200
    assert ask(agent, "/firebrick/go-on").status_code == 204


def test_it_tells_whether_it_was_held_and_has_randomness(own_agent: Agent) -> None:
    """Outside of a machine nothing is stopped and no randomness is taken, and the answer says so."""
    assert ask(own_agent, "/firebrick/hold?for=30").status_code == 204
    answer = renew(own_agent, other=False).json()
    assert (answer["held"], answer["randomness"]) == (True, False)
    assert ask(own_agent, "/firebrick/go-on", NEW_TOKEN).status_code == 204
    assert renew(own_agent, NEW_TOKEN, other=False).json()["held"] is False


@pytest.mark.parametrize("text", ["x", "-1", "1.5", ""])
def test_a_senseless_hold_holds_nothing(agent: Agent, text: str) -> None:
    """A time that is none is refused."""
    assert ask(agent, f"/firebrick/hold?for={text}").status_code == 400


async def test_a_clock_that_jumps_ends_no_hold() -> None:
    """The machine stood still for days, or goes on where another clock runs: only time that it lives through counts."""
    quiet, loop = Quiet(), asyncio.get_running_loop()
    real, ahead_s = loop.time, 0.0
    loop.time = lambda: real() + ahead_s  # type: ignore[method-assign]
    try:
        quiet.hold(3 * TICK_S)
        for held in (True, True, False):
            ahead_s += 1000.0
            # A timer that is due runs in the round after the one that sees it.
            for _ in range(3):
                await asyncio.sleep(0)
            assert quiet.is_held is held
    finally:
        quiet.go_on()
        del loop.time  # type: ignore[attr-defined]


def can_be_pid_1() -> bool:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_be_pid_1(), reason="needs root and a pid namespace")
def test_in_a_machine_everything_else_stands_still_and_the_kernel_takes_randomness() -> None:
    """As PID 1: a command stands still from the hold to the next /init, over a renewal, and then goes on."""
    python = [sys.executable, "-S", "-B", "-m", "firebrick_guest.main"]
    agent = Agent(["unshare", "--pid", "--fork", "--mount-proc", *python])
    try:
        # NOTE: without a timestamp: the clock is this computer's.
        assert agent.init().status_code == 204
        output, _ = agent.run("sh", "-c", "while :; do :; done >/dev/null 2>&1 & echo $!")
        pid = output.decode().strip()
        assert ask(agent, "/firebrick/hold?for=30").status_code == 204
        assert state_of(agent, pid) == "T"
        assert renew(agent, other=False).json() | {"timeNs": 0} == {"held": True, "randomness": True, "timeNs": 0}
        assert state_of(agent, pid) == "T"
        body = {"accessToken": ACCESS_TOKEN, "defaultUser": agent.user}
        assert ask(agent, "/init", NEW_TOKEN, **body).status_code == 204
        wait_for_sync(lambda: state_of(agent, pid) != "T")
    finally:
        # NOTE: not unshare itself, which minds no signal while its child runs.
        for child in agent.children():
            os.kill(child, signal.SIGTERM)
        assert agent.stop() == 0


def state_of(agent: Agent, pid: str) -> str:
    stat = agent.request("GET", f"/files?path=/proc/{pid}/stat").text
    return stat.rpartition(")")[2].split()[0]
