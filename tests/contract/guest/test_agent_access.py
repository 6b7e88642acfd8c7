"""Who may ask the agent what."""

import time
from urllib.parse import quote

import pytest

from firebrick_guest.auth import signature
from tests.contract.guest.agent import ACCESS_TOKEN, CONTROL_TOKEN, Agent, pick_user

PROCESS = ("List", "Update", "SendInput", "SendSignal", "CloseStdin", "Start", "Connect", "StreamInput")
FILESYSTEM = ("Stat", "MakeDir", "Move", "ListDir", "Remove")
RPCS = [f"/process.Process/{name}" for name in PROCESS] + [f"/filesystem.Filesystem/{name}" for name in FILESYSTEM]
ROUTES = [("POST", path) for path in RPCS] + [("GET", "/metrics"), ("GET", "/envs"), ("GET", "/nowhere")]
FILE_ROUTES = [("GET", "/files?path=/etc/hostname"), ("POST", "/files?path=/tmp/x")]


def signed(path: str, operation: str, expiration: str | None = None, user: str = "") -> str:
    query = f"path={quote(path)}&signature={quote(signature(path, operation, user, ACCESS_TOKEN, expiration), safe='')}"
    query += f"&username={user}" if user else ""
    return f"/files?{query}" + (f"&signature_expiration={expiration}" if expiration else "")


@pytest.mark.parametrize(("method", "path"), ROUTES + FILE_ROUTES)
def test_before_init_everything_is_closed(closed_agent_once: Agent, method: str, path: str) -> None:
    """Before the first /init every route but /health answers 503, even with a token."""
    answer = closed_agent_once.request(method, path)
    assert answer.status_code == 503
    assert answer.json()["code"] in (503, "unavailable")


@pytest.fixture(scope="module")
def closed_agent_once() -> object:
    fresh = Agent()
    yield fresh
    assert fresh.stop() == 0


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "token", [None, "", "wrong", ACCESS_TOKEN[:-1], ACCESS_TOKEN + "x", f"{ACCESS_TOKEN}, {ACCESS_TOKEN}"]
)
def test_every_route_wants_the_token(agent: Agent, method: str, path: str, token: str | None) -> None:
    """Without exactly the access token every route, known or not, answers E2B's 401."""
    answer = agent.http.request(method, path, headers={} if token is None else {"X-Access-Token": token})
    assert answer.status_code == 401
    assert answer.json()["code"] == 401
    assert answer.json()["message"].startswith("unauthorized access")


def test_health_is_always_open(agent: Agent) -> None:
    """/health needs no token and answers 204, not to be stored."""
    answer = agent.http.get("/health")
    assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (204, b"", "no-store")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/init"), ("GET", "/firebrick/logs"), ("POST", "/firebrick/hold"), ("POST", "/firebrick/renew")],
)
def test_the_hosts_routes_want_the_hosts_token(agent: Agent, method: str, path: str) -> None:
    """The access token does not open what is the host's."""
    for token in ("", ACCESS_TOKEN, CONTROL_TOKEN[:-1]):
        assert agent.request(method, path, headers={"X-Firebrick-Control": token}).status_code == 401


def test_a_repeated_init_never_opens(closed_agent: Agent) -> None:
    """Without a token /init leaves a closed agent closed and a set token set; only `open` removes it."""
    assert closed_agent.init(accessToken=None).status_code == 204
    assert closed_agent.request("GET", "/envs").status_code == 503
    assert closed_agent.init(envVars={"A": "1"}).status_code == 204
    assert closed_agent.init(accessToken="").status_code == 204
    assert closed_agent.http.get("/envs").status_code == 401
    expected = {"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": "sbx", "E2B_TEMPLATE_ID": "base", "A": "1"}
    assert closed_agent.request("GET", "/envs").json() == expected
    assert closed_agent.init(accessToken=None, open=True).status_code == 204
    assert closed_agent.http.get("/envs").status_code == 200


def test_an_old_init_is_refused(closed_agent: Agent) -> None:
    """An /init that is older than the last one changes nothing."""
    now = time.time()
    later, earlier = (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(t)) + f".{int(t % 1 * 1e6):06d}Z" for t in (now, now - 60)
    )
    assert closed_agent.init(timestamp=later).status_code == 204
    answer = closed_agent.init(timestamp=earlier, accessToken="other")
    assert answer.status_code == 409
    assert closed_agent.request("GET", "/envs").status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"envVars":{"":"x"}}', b'{"envVars":[]}', b'{"timestamp":"x"}'])
def test_a_senseless_init_changes_nothing(agent: Agent, body: bytes) -> None:
    """Nonsense is refused as a whole; the agent keeps the settings it has."""
    answer = agent.http.post("/init", content=body, headers={"X-Firebrick-Control": CONTROL_TOKEN})
    assert answer.status_code == (400 if body else 204)
    assert agent.request("GET", "/envs").json()["E2B_SANDBOX_ID"] == "sbx"


def test_signed_urls_open_exactly_what_they_sign(agent: Agent, folder: str) -> None:
    """A signature opens one path for one operation until it expires; any change is answered as E2B answers it."""
    path = f"{folder}/a b+c"
    data = {"Content-Type": "application/octet-stream"}
    assert agent.http.post(signed(path, "write"), content=b"hi", headers=data).status_code == 200
    assert agent.http.get(signed(path, "read")).content == b"hi"
    assert agent.http.get(signed(path, "read", str(int(time.time()) + 60))).content == b"hi"
    assert agent.http.get(signed(path, "read", user=pick_user())).content == b"hi"
    for expired in ("1", "-5"):
        answer = agent.http.get(signed(path, "read", expired))
        assert (answer.status_code, answer.json()) == (401, {"code": 401, "message": "signature is already expired"})
    good = signed(path, "read")
    for wrong in (signed(path, "write"), f"{good}&signature_expiration=9", good.replace("=v1_", "=v1_A")):
        assert agent.http.get(wrong).json() == {"code": 401, "message": "invalid signature"}
    answer = agent.http.get(f"/files?path={quote(path)}")
    assert answer.json() == {"code": 401, "message": "missing signature query parameter"}
    answer = agent.http.get(signed(path, "read"), headers={"X-Access-Token": "wrong"})
    assert answer.json() == {"code": 401, "message": "access token present in header but does not match"}


def test_the_log_tells_what_happened(agent: Agent) -> None:
    """The host can read the agent's events; what a command printed is not among them."""
    agent.run("/bin/echo", "secret-output")
    answer = agent.http.get("/firebrick/logs?since=0&limit=1000", headers={"X-Firebrick-Control": CONTROL_TOKEN})
    messages = [entry["message"] for entry in answer.json()["entries"]]
    assert {"settings taken", "process started", "process exited"} <= set(messages)
    assert "secret-output" not in answer.text


def test_metrics_have_e2bs_fields(agent: Agent) -> None:
    """/metrics tells CPU, memory and disk, and beyond E2B's fields the processes and which limits were reached."""
    metrics = agent.request("GET", "/metrics").json()
    assert set(metrics) == {
        "ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache", "mem_total_mib", "mem_used_mib",
        "disk_used", "disk_total", "process_count", "process_limit", "limit_hits",
    }  # fmt: skip
    assert 0 < metrics["mem_used"] <= metrics["mem_total"]
    assert 0 <= metrics["cpu_used_pct"] <= 100


def test_an_agent_without_a_control_token_does_not_start() -> None:
    """Nobody's agent is nobody's to configure."""
    with pytest.raises(IndexError):
        Agent(env={"FIREBRICK_CONTROL_TOKEN": ""})
