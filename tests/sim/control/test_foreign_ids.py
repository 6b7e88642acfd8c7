"""What another team has answers like what is not there: on every route of the described API with an id in its path, and
wherever else an id can be sent. Same bytes, status, headers and as many statements of the database."""

import json
import secrets
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event

from firebrick.log import bound_value
from firebrick.model.ids import new_sandbox_id, new_template_id
from tests.support.control import Running
from tests.support.owners import Api, open_api

DOCUMENT = json.loads((Path(__file__).parents[3] / "api" / "control.openapi.json").read_text())
ROUTES = [
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    if "{" in path and not path.startswith(("/admin/", "/nodes/"))
]
"""Those of owners. The operator's know no other team; that nobody else gets in is another test's."""
OPERATORS = [
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    if path.startswith(("/admin/", "/nodes"))
]
BODIES: tuple[Any, ...] = (None, {}, {"timeout": 60}, {"timeout": 60, "count": 1, "name": "x"})
QUERIES = {"/teams/{teamID}/metrics/max": "?metric=concurrent_sandboxes"}
ELSEWHERE: tuple[tuple[str, str, str, Any], ...] = (
    ("sandboxID", "GET", "/sandboxes/metrics?sandbox_ids={}", None),
    ("sandboxID", "GET", "/snapshots?sandboxID={}", None),
    ("templateID", "GET", "/snapshots?name={}", None),
    ("templateID", "GET", "/v2/sandboxes?template={}", None),
    ("templateID", "POST", "/v2/sandboxes", {"templateID": "{}"}),
    ("templateID", "POST", "/sandboxes", {"templateID": "{}"}),
)


@dataclass(slots=True, kw_only=True)
class Foreign:
    """What another team has, and how we would ask for it. `never` makes ids that were never given out."""

    api: Api
    callers: list[dict[str, str]]
    ids: dict[str, list[str]]

    def never(self, kind: str, like: str) -> str:
        if kind == "sandboxID":
            return new_sandbox_id()
        if kind in ("apiKeyID", "accessTokenID"):
            return str(uuid.uuid4())
        if kind == "teamID":
            return "team_" + secrets.token_hex(8)
        name, colon, tag = like.partition(":")
        return ("theirs/never" if "/" in name else new_template_id()) + colon + tag


@pytest.fixture
async def foreign(running: Running) -> AsyncIterator[Foreign]:
    api = open_api(running)
    async with api.http:
        mine, key = await api.new_team("mine")
        theirs, their_key = await api.new_team("theirs")
        _, bearer = await api.new_user("me@example.org", mine)
        _, their_bearer = await api.new_user("they@example.org", theirs)

        async def create() -> str:
            return str((await api.ok("POST", "/v2/sandboxes", their_key, json={"templateID": "base"}))["sandboxID"])

        alive, paused, ended = await create(), await create(), await create()
        await api.ok("POST", f"/sandboxes/{paused}/pause", their_key)
        await api.ok("DELETE", f"/sandboxes/{ended}", their_key)
        snapshots = [
            await api.ok("POST", f"/sandboxes/{alive}/snapshots", their_key, json=body)
            for body in ({}, {"name": "saved"})
        ]
        ids = {
            "sandboxID": [alive, paused, ended],
            "teamID": [theirs],
            "apiKeyID": [item["id"] for item in await api.ok("GET", "/api-keys", their_bearer)],
            "accessTokenID": [(await api.ok("POST", "/access-tokens", their_bearer, json={"name": "x"}))["id"]],
            "templateID": [
                snapshots[0]["snapshotID"],
                snapshots[0]["snapshotID"].partition(":")[0],
                snapshots[1]["snapshotID"],
                "theirs/saved",
            ],
        }
        ids["alias"] = ids["templateID"]
        callers = [key, bearer, bearer | {"X-Team-ID": mine}]
        for caller in callers:
            # A key that was found is not looked up again for a while.
            await api.ok("GET", "/v2/sandboxes", caller)
        yield Foreign(api=api, callers=callers, ids=ids)
        assert len(await api.ok("GET", "/v2/sandboxes", their_key)) == 2
        assert len(await api.ok("GET", "/snapshots", their_key)) == 2
        assert len(await api.ok("GET", "/api-keys", their_bearer)) == 1
        for row in await running.living():
            await running.control.sandboxes.kill_all(row.team_id)
            await running.wait_ended(row.sandbox_id)


@contextmanager
def statements_counted(seen: list[str]) -> Iterator[None]:
    """Those of requests, not of what goes on behind."""

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if bound_value("request_id"):
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def ask(
    found: Foreign, method: str, path: str, item: str, caller: dict[str, str], body: Any
) -> tuple[httpx.Response, Any]:
    """The answer, and all of it that may not differ."""
    seen: list[str] = []
    quoted = item.replace("/", "%2F")
    with statements_counted(seen):
        text = None if body is None else json.dumps(body).replace("{}", item)
        answer = await found.api.http.request(
            method, path.replace("{}", quoted), headers=caller | {"content-type": "application/json"}, content=text
        )
    headers = sorted((name, value) for name, value in answer.headers.items() if name != "x-request-id")
    plain = answer.text.replace(item, "ID").replace(json.dumps(item)[1:-1], "ID")
    return answer, (answer.status_code, plain, [h for h in headers if h[0] != "content-length"], seen)


@pytest.mark.parametrize(("method", "route"), ROUTES)
async def test_foreign_ids_answer_as_ids_that_are_not(foreign: Foreign, method: str, route: str) -> None:
    """On every route; one that is added later is covered by itself."""
    before, _, rest = route.partition("{")
    kind, _, after = rest.partition("}")
    assert "{" not in after, "a route with two ids: say here what they are"
    path = before + "{}" + after + QUERIES.get(route, "")
    statuses = set()
    for caller in foreign.callers:
        for body in BODIES if method in ("POST", "PUT", "PATCH") else (None,):
            for theirs in foreign.ids[kind]:
                answer, told = await ask(foreign, method, path, theirs, caller, body)
                _, never = await ask(foreign, method, path, foreign.never(kind, theirs), caller, body)
                assert told == never
                assert not answer.is_success
                statuses.add(answer.status_code)
    # At least one of the callers and bodies is what the route wants.
    assert statuses & {403, 404}, statuses


@pytest.mark.parametrize(("kind", "method", "path", "body"), ELSEWHERE)
async def test_foreign_ids_elsewhere(foreign: Foreign, kind: str, method: str, path: str, body: Any) -> None:
    """In a query or a body, too."""
    for theirs in foreign.ids[kind]:
        _, told = await ask(foreign, method, path, theirs, foreign.callers[0], body)
        _, never = await ask(foreign, method, path, foreign.never(kind, theirs), foreign.callers[0], body)
        assert told == never


@pytest.mark.parametrize(("method", "route"), OPERATORS)
async def test_the_operators_endpoints_tell_nobody_else_anything(foreign: Foreign, method: str, route: str) -> None:
    """No key or user opens them, whatever ids are in the path."""
    told = set()
    for item in (foreign.ids["teamID"][0], "team_" + secrets.token_hex(8)):
        path = route.replace("{teamID}", item).replace("{apiKeyID}", foreign.ids["apiKeyID"][0])
        path = path.replace("{userID}", item).replace("{nodeID}", item)
        for caller in foreign.callers:
            answer, _ = await ask(foreign, method, path, item, caller, {"name": "x", "status": "draining"})
            told.add((answer.status_code, answer.text))
    assert len(told) == 1
    assert next(iter(told))[0] == 401
