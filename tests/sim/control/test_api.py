"""The REST API as clients see it, over a real control plane and a node in memory."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from firebrick.api.route import MAX_BODY_BYTES, GuardedRoute, PublicRoute
from firebrick.control.keys import digest_of, new_api_key
from firebrick.model.errors import Internal, Invalid
from firebrick.model.ids import KeyId, TeamId, new_sandbox_id
from firebrick.model.machine import ExitCause
from firebrick.model.team import ApiKey
from firebrick.rpc.node_api import LogEntry
from firebrick.store.teams import key_insert, team_insert
from tests.sim.control.conftest import create
from tests.support.control import Running, run_control
from tests.support.rows import make_team


async def test_create_answers_what_clients_need(client: httpx.AsyncClient, running: Running) -> None:
    """The answer has E2B's fields, the domain for host names, a token, and our runtime and isolation."""
    answer = await create(client, metadata={}, envVars={})
    token = answer.pop("envdAccessToken")
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert re.fullmatch(r"i[a-z0-9]{20}", answer.pop("sandboxID"))
    assert answer == {
        "templateID": (await running.living())[0].template_id, "clientID": "firebrick", "envdVersion": "0.6.13",
        "alias": "base", "trafficAccessToken": None, "domain": "sandbox.localhost:3002", "runtime": "sim",
        "isolation": "none",
    }  # fmt: skip


async def test_defaults_differ_by_version(client: httpx.AsyncClient) -> None:
    """Without a timeout v1 gives 15 s, v2 300 s; without `secure` v1 gives no token, v2 always one."""
    old, new = await create(client, "/sandboxes"), await create(client)
    assert "envdAccessToken" not in old
    assert "envdAccessToken" in await create(client, "/sandboxes", secure=True)
    for answer, seconds in ((old, 15), (new, 300)):
        detail = (await client.get(f"/sandboxes/{answer['sandboxID']}")).json()
        lifetime = datetime.fromisoformat(detail["endAt"]) - datetime.fromisoformat(detail["startedAt"])
        assert lifetime == timedelta(seconds=seconds)


async def test_get_tells_all(client: httpx.AsyncClient) -> None:
    """The detail repeats what was asked, the sizes and the lifecycle."""
    answer = await create(client, metadata={"k": "v"}, allow_internet_access=False)
    detail = (await client.get(f"/sandboxes/{answer['sandboxID']}-client")).json()
    assert detail["metadata"] == {"k": "v"}
    assert detail["allowInternetAccess"] is False
    assert detail["envdAccessToken"] == answer["envdAccessToken"]
    assert (detail["state"], detail["cpuCount"], detail["memoryMB"]) == ("running", 2, 1024)
    assert detail["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
    assert (detail["runtime"], detail["isolation"]) == ("sim", "none")


async def test_kill_once_then_not_found(client: httpx.AsyncClient) -> None:
    """The first kill is 204, everything after is 404 with the known text."""
    path = f"/sandboxes/{(await create(client))['sandboxID']}"
    assert (await client.delete(path)).status_code == 204
    for response in (
        await client.delete(path),
        await client.get(path),
        await client.post(path + "/timeout", json={"timeout": 1}),
    ):
        assert response.status_code == 404
        assert "doesn't exist or you don't have access to it" in response.json()["message"]
    assert (await client.delete("/sandboxes/nonexistingsandbox")).status_code == 404
    assert (await client.get("/v2/sandboxes")).json() == []


async def test_timeouts(client: httpx.AsyncClient) -> None:
    """connect and refresh never shorten, timeout does; bounds are refused with E2B's texts."""
    path = f"/sandboxes/{(await create(client, timeout=100))['sandboxID']}"

    async def end() -> str:
        return str((await client.get(path)).json()["endAt"])

    before = await end()
    assert (await client.post(f"/v2{path}/connect", json={"timeout": 5})).status_code == 200
    assert (await client.post(f"{path}/connect", json={"timeout": 5})).status_code == 200
    assert (await client.post(f"{path}/refreshes", json={"duration": 5})).status_code == 204
    assert (await client.post(f"{path}/refreshes")).status_code == 204
    assert await end() == before
    assert (await client.post(f"/v2{path}/connect")).status_code == 200
    assert await end() > before
    assert (await client.post(f"{path}/timeout", json={"timeout": 1})).status_code == 204
    assert await end() < before
    for timeout, words in ((-1, "Timeout must be"), (86_401, "cannot be greater than 24 hours"), (2**70, "greater")):
        response = await client.post(f"{path}/timeout", json={"timeout": timeout})
        assert response.status_code == 400
        assert words in response.json()["message"]
    for timeout in (0, -1):
        response = await client.post("/v2/sandboxes", json={"templateID": "base", "timeout": timeout})
        assert (response.status_code, response.json()["message"][:30]) == (400, "Timeout must be greater than 0"[:30])


async def test_pages(client: httpx.AsyncClient) -> None:
    """Tokens lead through all pages; a changed or foreign token is refused; totals are in the headers."""
    ids = {(await create(client, metadata={"n": str(number)}))["sandboxID"] for number in range(3)}
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 1}
    while True:
        response = await client.get("/v2/sandboxes", params=params)
        assert response.headers["x-total-running"] == "3"
        seen += [item["sandboxID"] for item in response.json()]
        if "x-next-token" not in response.headers:
            break
        params["nextToken"] = response.headers["x-next-token"]
    assert set(seen) == ids
    assert len(seen) == 3
    token = params["nextToken"]
    for bad in (token[:-2] + "AA", "x", "é", "A" * 2000):
        assert (await client.get("/v2/sandboxes", params={"nextToken": bad})).status_code == 400
    assert (await client.get("/v2/sandboxes", params={"nextToken": token, "order": "asc"})).status_code == 400
    response = await client.get("/v2/sandboxes?metadata=n%253D1")
    assert [item["metadata"] for item in response.json()] == [{"n": "1"}]
    assert len((await client.get("/sandboxes?metadata=n%253D2")).json()) == 1
    assert (await client.get("/v2/sandboxes", params={"template": "none"})).json() == []


BAD_CREATES: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "validation error: templateID"),
    ({"templateID": 5}, 400, "validation error: templateID"),
    ({"templateID": ""}, 400, "validation error: templateID"),
    ({"templateID": "base", "timeout": "60"}, 400, "validation error: timeout"),
    ({"templateID": "base", "timeout": 1.5}, 400, "validation error: timeout"),
    ({"templateID": "base", "timeout": True}, 400, "validation error: timeout"),
    ({"templateID": "base", "timeout": 86_401}, 400, "Timeout cannot be greater than 24 hours"),
    ({"templateID": "base", "metadata": {"a": 1}}, 400, "validation error: metadata"),
    ({"templateID": "base", "metadata": {"a": "\0"}}, 400, "NUL"),
    ({"templateID": "base", "metadata": {"a": "x" * 70_000}}, 400, "too large"),
    ({"templateID": "base", "metadata": {"a": "x" * 10_000_000}}, 413, "too large"),
    ({"templateID": "base", "envVars": {"A=B": "1"}}, 400, "validation error: envVars"),
    ({"templateID": "base", "envVars": {"A": "x" * 131_072}}, 400, "too large"),
    ({"templateID": "unknown"}, 404, "template 'unknown' not found"),
    ({"templateID": "base:v9"}, 404, "tag 'v9' does not exist for template 'base'"),
    ({"templateID": "base", "autoPauseMemory": False}, 400, "autoPauseMemory"),
    ({"templateID": "base", "autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}}, 400, "auto"),
    ({"templateID": "base", "metadata": {"firebrick.idleTimeout": "5"}}, 400, "idleTimeout: whole seconds from 15"),
    ({"templateID": "base", "network": {"denyOut": ["example.com"]}}, 400, "invalid denied CIDR example.com"),
    ({"templateID": "base", "network": {"allowOut": ["example.com"]}}, 400, "you must include 'ALL_TRAFFIC' in deny"),
    ({"templateID": "base", "network": {"rules": {"a.test": [{"transform": {}}]}}}, 501, "network.rules"),
    ({"templateID": "base", "network": {"egressProxy": {"address": "a:1"}}}, 501, "network.egressProxy"),
    ({"templateID": "base", "network": {"httpsPorts": [49983]}}, 400, "httpsPorts"),
    ({"templateID": "base", "network": {"maskRequestHost": "a b"}}, 400, "maskRequestHost"),
    ({"templateID": "base", "network": {"dnsServers": ["one.one.one.one"]}}, 400, "not an IPv4 address"),
    ({"templateID": "base", "volumeMounts": [{"name": "a", "path": "/a"}]}, 501, "volumeMounts"),
    ({"templateID": "base", "iam": {"tokens": {"a": {}}}}, 501, "iam"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD_CREATES, ids=range(len(BAD_CREATES)))
async def test_bad_creates(client: httpx.AsyncClient, body: dict[str, Any], status: int, words: str) -> None:
    """Each wrong or unserved field is refused by name, in one line, without being repeated."""
    for path in ("/v2/sandboxes", "/sandboxes"):
        response = await client.post(path, json=body)
        assert response.status_code == status, response.text
        assert words in response.json()["message"]


async def test_harmless_fields_are_accepted(client: httpx.AsyncClient) -> None:
    """Fields that ask for nothing, for what is anyway so, or that we do not know, do not disturb."""
    await create(
        client, autoPause=False, autoPauseMemory=True, network={"allowOut": [], "allowPublicTraffic": True}, iam={},
        volumeMounts=[], mcp={"x": {}}, autoResume={"enabled": False}, metadata=None, fromTheFuture=1,
    )  # fmt: skip
    await create(client, templateID=" BASE:default ")


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b'"x"', b"{", b'{"templateID":"base",}', b"\xff", b"[" * 100_000, b"1e400"]
)  # fmt: skip
async def test_broken_json(client: httpx.AsyncClient, content: bytes) -> None:
    """Whatever is not a JSON object is 400, never 500."""
    response = await client.post(
        "/v2/sandboxes", content=content, headers={"Content-Type": "application/json"}
    )  # fmt: skip
    assert response.status_code == 400
    assert response.json()["message"].startswith("validation error")


async def test_lone_surrogates(client: httpx.AsyncClient) -> None:
    """Text that is no Unicode is refused."""
    content = b'{"templateID":"base","metadata":{"a":"\\ud800"}}'
    response = await client.post("/v2/sandboxes", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400


async def test_an_endless_body_is_cut_off(client: httpx.AsyncClient) -> None:
    """A body without a length is read no further than the bound."""
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * MAX_BODY_BYTES:
            sent += 65_536
            yield b" " * 65_536

    response = await client.post("/v2/sandboxes", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413


def walk(routes: list[Any]) -> Iterator[Any]:
    """Every route, those of included routers too."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from walk(inner.routes)


async def test_every_route_wants_a_key_first(client: httpx.AsyncClient) -> None:
    """Of every route that is not marked public, a wrong or missing key gets 401 before anything is looked at."""
    routes = list(walk(client._transport.app.routes))  # type: ignore[attr-defined]
    assert len(routes) > 40
    public = set()
    for route in routes:
        assert isinstance(route, APIRoute)
        if isinstance(route, PublicRoute):
            public.add(route.path)
            continue
        assert isinstance(route, GuardedRoute)
        path = re.sub(r"{\w+}", "x", route.path)
        for method in route.methods:
            for key in ("", "e2b_" + "0" * 40, "é"):
                for header in ("X-API-Key", "X-Admin-Token", "Authorization"):
                    value = f"Bearer {key}" if header == "Authorization" else key
                    wrong = {"X-API-Key": b"", header: value.encode(), "Content-Type": "application/json"}
                    response = await client.request(method, path, content=b"{", headers=wrong)
                    assert response.status_code == 401, (method, path, header)
    assert public == {"/health", "/metrics"}


async def test_another_teams_sandbox_is_as_an_unknown_one(client: httpx.AsyncClient, running: Running) -> None:
    """With another team's key every operation answers as for an id that never was."""
    mine = (await create(client))["sandboxID"]
    plain, stranger = new_api_key(), make_team(team_id=TeamId("team_b"), name="b")
    key = ApiKey(key_id=KeyId("key_b"), team_id=stranger.team_id, name="b", mask="", created_at=stranger.created_at)
    async with running.control.platform.database.write() as tx:
        await team_insert(tx, stranger)
        await key_insert(tx, key, digest=digest_of(plain))
    never = new_sandbox_id()
    operations = [
        ("GET", "/sandboxes/{}", None), ("DELETE", "/sandboxes/{}", None), ("GET", "/sandboxes/{}/logs", None),
        ("GET", "/v2/sandboxes/{}/logs", None), ("GET", "/sandboxes/{}/metrics", None),
        ("POST", "/sandboxes/{}/timeout", {"timeout": 1}), ("POST", "/sandboxes/{}/refreshes", {}),
        ("POST", "/sandboxes/{}/connect", {"timeout": 1}), ("POST", "/v2/sandboxes/{}/connect", {}),
        ("POST", "/sandboxes/{}/pause", None), ("POST", "/sandboxes/{}/resume", {}), ("POST", "/sandboxes/{}/fork", {}),
        ("POST", "/sandboxes/{}/snapshots", {}), ("POST", "/sandboxes/{}/recover", None),
    ]  # fmt: skip
    for method, path, body in operations:
        answers = [
            await client.request(method, path.format(item), json=body, headers={"X-API-Key": plain})
            for item in (mine, never)
        ]
        assert [answer.status_code for answer in answers] == [404, 404], (method, path)
        assert answers[0].text.replace(mine, never) == answers[1].text
    assert (await client.get("/v2/sandboxes", headers={"X-API-Key": plain})).json() == []
    metrics = await client.get(f"/sandboxes/metrics?sandbox_ids={mine}", headers={"X-API-Key": plain})
    assert metrics.json() == {"sandboxes": {}}


async def test_framework_errors_have_our_shape(client: httpx.AsyncClient) -> None:
    """Unknown paths, methods and path tricks are 404 or 405 in the one shape."""
    for method, path, status in (
        ("GET", "/nothing", 404), ("GET", "//sandboxes", 404), ("GET", "/sandboxes/", 404), ("PUT", "/sandboxes", 405),
        ("TRACE", "/sandboxes", 405), ("GET", "/docs", 404), ("GET", "/openapi.json", 404),
        ("GET", "/sandboxes/%2e%2e/admin", 404), ("GET", "/sandboxes/%00", 400), ("GET", "/sandboxes/%ff", 400),
    ):  # fmt: skip
        assert (await client.request(method, path)).status_code == status, path


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=NaN", "order=up", "state=dead", "startedAfter=soon", "metadata=a", "nextToken=x"],
)
async def test_bad_queries(client: httpx.AsyncClient, query: str) -> None:
    """Every bad query parameter is 400 and named or explained."""
    response = await client.get(f"/v2/sandboxes?{query}")
    assert response.status_code == 400


async def test_what_is_not_there_yet_says_so(client: httpx.AsyncClient) -> None:
    """E2B's operations that this version lacks answer 501 with a sentence, and tell clients not to retry."""
    sandbox_id = (await create(client))["sandboxID"]
    for method, path in (("GET", f"/volumes/{sandbox_id}"), ("GET", "/volumes"), ("POST", "/v3/templates")):
        response = await client.request(method, path)
        assert response.status_code == 501
        assert "is not available in this version of Firebrick" in response.json()["message"]
        assert response.headers["should-retry"] == "false"


async def test_retry_headers(client: httpx.AsyncClient, running: Running) -> None:
    """A full team is told not to retry, a node that is away to try again."""
    running.world.node.go_down()
    response = await client.post("/v2/sandboxes", json={"templateID": "base"})
    assert (response.status_code, response.headers["should-retry"], response.headers["retry-after"]) == (
        503,
        "true",
        "1",
    )
    running.world.node.come_back()
    for _ in range(20):
        await create(client)
    response = await client.post("/v2/sandboxes", json={"templateID": "base"})
    assert (response.status_code, response.headers["should-retry"]) == (429, "false")
    assert "maximum number of concurrent" in response.json()["message"]


async def test_idempotency_key(client: httpx.AsyncClient) -> None:
    """Key and body again: the same answer; another body: 422; a bad key: 400."""

    async def post(key: str, **body: Any) -> httpx.Response:
        return await client.post(
            "/v2/sandboxes", json={"templateID": "base"} | body, headers={"Idempotency-Key": key}
        )  # fmt: skip

    first, again = await post("k-1"), await post("k-1")
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    other = await post("k-1", timeout=7)
    assert (other.status_code, other.json()["error_code"]) == (422, "idempotency_request_mismatch")
    assert (await post("BAD KEY")).status_code == 400


async def test_logs(client: httpx.AsyncClient, running: Running) -> None:
    """Both versions give lines; v2 filters by level, text and direction; logs outlive the sandbox."""
    sandbox_id = (await create(client))["sandboxID"]
    now = running.world.clock.now()
    running.world.node.logs[sandbox_id] = [
        LogEntry(timestamp=now + timedelta(seconds=number), level=level, message=f"line {number}")
        for number, level in enumerate(("info", "error", "debug"))
    ]
    old = (await client.get(f"/sandboxes/{sandbox_id}/logs?limit=2")).json()
    assert [json.loads(entry["line"]) for entry in old["logs"]] == [
        {"level": level, "logger": "envd", "message": f"line {number}"}
        for number, level in enumerate(("info", "error"))
    ]
    assert old["logEntries"][1]["level"] == "error"

    async def lines(query: str) -> list[str]:
        return [
            entry["message"] for entry in (await client.get(f"/v2/sandboxes/{sandbox_id}/logs?{query}")).json()["logs"]
        ]

    assert await lines("") == ["line 0", "line 1", "line 2"]
    assert await lines("direction=backward&limit=2") == ["line 2", "line 1"]
    assert await lines("level=warn") == ["line 1"]
    assert await lines("search=2") == ["line 2"]
    cursor = int((now + timedelta(seconds=1)).timestamp() * 1000)
    assert await lines(f"cursor={cursor}") == ["line 1", "line 2"]
    running.world.node.end(sandbox_id, ExitCause.OOM)
    await running.wait_ended(sandbox_id, turn_s=1)
    assert len(await lines("")) == 3


async def test_metrics(client: httpx.AsyncClient, running: Running) -> None:
    """A first reading is there at once; a window in the past is empty; many are read in one request."""
    sandbox_id = (await create(client))["sandboxID"]
    (metric,) = (await client.get(f"/sandboxes/{sandbox_id}/metrics")).json()
    assert (metric["cpuCount"], metric["cpuUsedPct"], metric["memTotal"], metric["diskTotal"]) == (2, 12.5, 3, 5)
    past = int(running.world.clock.now().timestamp()) - 3600
    assert (await client.get(f"/sandboxes/{sandbox_id}/metrics?start={past - 60}&end={past}")).json() == []
    many = (await client.get(f"/sandboxes/metrics?sandbox_ids={sandbox_id},{new_sandbox_id()}")).json()
    assert list(many["sandboxes"]) == [sandbox_id]


async def test_templates(client: httpx.AsyncClient) -> None:
    """The shipped template is listed and found by name; others are not."""
    (template,) = (await client.get("/templates")).json()
    assert (template["names"], template["public"], template["buildStatus"]) == (["base"], True, "ready")
    assert template["createdBy"] is None
    assert (await client.get("/templates/aliases/base")).json() == {
        "templateID": template["templateID"],
        "public": True,
    }
    assert (await client.get("/templates/aliases/other")).status_code == 404


async def test_operators_see_figures(client: httpx.AsyncClient) -> None:
    """Health is 200; Prometheus gets requests by route, sandboxes by state and node health; no ids."""
    sandbox_id = (await create(client))["sandboxID"]
    assert (await client.get("/health", headers={"X-API-Key": ""})).status_code == 200
    await client.get(f"/sandboxes/{sandbox_id}")
    text = (await client.get("/metrics")).text
    assert 'firebrick_http_requests_total{method="GET",route="/sandboxes/{sandboxID}",status="200"} 1.0' in text
    assert 'firebrick_sandboxes{state="running"} 1.0' in text
    assert 'firebrick_node_ready{node_id="nod_1"} 1.0' in text
    assert sandbox_id not in text


async def test_request_ids_and_cors(client: httpx.AsyncClient) -> None:
    """A harmless request id is kept, another replaced; browsers may call and read the page headers."""
    assert (await client.get("/health", headers={"X-Request-Id": "abc-1"})).headers["x-request-id"] == "abc-1"
    assert (await client.get("/health", headers={"X-Request-Id": "a b"})).headers["x-request-id"] != "a b"
    response = await client.get("/v2/sandboxes", headers={"Origin": "http://x"})
    assert response.headers["access-control-allow-origin"] == "*"
    assert "X-Next-Token" in response.headers["access-control-expose-headers"]
    preflight = {
        "Origin": "http://x",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key",
    }
    assert (await client.options("/v2/sandboxes", headers=preflight)).status_code == 200


async def test_the_unforeseen_is_500_in_our_shape(client: httpx.AsyncClient, running: Running) -> None:
    """A bug answers 500 without a word of its inside, and says not to retry."""

    def bug() -> None:
        raise ZeroDivisionError("secret inside")

    running.world.node.before["read_logs"] = bug
    sandbox_id = (await create(client))["sandboxID"]
    response = await client.get(f"/sandboxes/{sandbox_id}/logs")
    assert response.status_code == 500
    assert "inside" not in response.text
    assert response.headers["should-retry"] == "false"

    def internal() -> None:
        raise Internal("It broke.", detail="/root/secret")

    running.world.node.before["read_logs"] = internal
    assert (await client.get(f"/sandboxes/{sandbox_id}/logs")).json() == {"code": 500, "message": "It broke."}


async def test_keys_survive_a_restart(running: Running) -> None:
    """The first key is shown once and works after a restart of the control plane."""
    assert running.key is not None
    async with run_control(running.world) as again:
        assert again.key is None
        assert (await again.control.keys.authenticate(running.key))[1] == running.team


async def test_a_key_that_was_written_down_before_is_made_valid(running: Running) -> None:
    """A key from a file becomes valid once, also beside earlier ones; a malformed one is refused."""
    control, plain = running.control, new_api_key()
    assert await control.ensure_default_team(plain) == (running.team, plain)
    assert await control.ensure_default_team(plain) == (running.team, None)
    assert (await control.keys.authenticate(plain))[1] == running.team
    assert (await control.keys.authenticate(running.key))[1] == running.team
    with pytest.raises(Invalid):
        await control.ensure_default_team("two words")
