"""Pause, resume, snapshots, forks, metrics over time and the grace bin through the REST API, as clients see them."""

from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from firebrick.control.background.sample_teams import ROUND_S
from firebrick.model.errors import Internal, Unavailable, WrongState
from firebrick.model.ids import SandboxId, new_sandbox_id
from firebrick.model.sandbox import SandboxState
from firebrick.store.samples import FULL
from tests.sim.control.conftest import create
from tests.support.control import Running
from tests.support.wait import wait_for


async def detail(client: httpx.AsyncClient, sandbox_id: str) -> dict[str, Any]:
    response = await client.get(f"/sandboxes/{sandbox_id}")
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def pause(client: httpx.AsyncClient, sandbox_id: str, **body: Any) -> None:
    response = await client.post(f"/sandboxes/{sandbox_id}/pause", json=body or None)
    assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize("memory", [None, True, False])
async def test_a_paused_sandbox_says_what_was_kept(client: httpx.AsyncClient, memory: bool | None) -> None:
    """Paused, in detail and list: state, the end is the pause time, the mode of E2B and our field."""
    made = await create(client, metadata={"a": "b"})
    before = await detail(client, made["sandboxID"])
    await pause(client, made["sandboxID"], **({} if memory is None else {"memory": memory}))
    after = await detail(client, made["sandboxID"])
    keeps = memory is not False
    assert (after["state"], after["keepsMemory"], after["pauseMode"]) == (
        "paused", keeps, "full" if keeps else "filesystem",
    )  # fmt: skip
    assert after["endAt"] < before["endAt"]
    assert (after["metadata"], after["envdAccessToken"]) == ({"a": "b"}, made["envdAccessToken"])
    (listed,) = (await client.get("/v2/sandboxes?state=paused")).json()
    assert (listed["sandboxID"], listed["keepsMemory"]) == (made["sandboxID"], keeps)
    assert (await client.get("/v2/sandboxes?state=running")).json() == []
    assert (await client.get("/sandboxes")).json() == []
    assert (await client.get("/v2/sandboxes")).headers["x-total-running"] == "0"


async def test_a_second_pause_is_a_conflict(client: httpx.AsyncClient) -> None:
    """Pausing twice is 409 with E2B's sentence; so is resuming what runs; timeouts of paused ones are 404."""
    made = (await create(client))["sandboxID"]
    response = await client.post(f"/sandboxes/{made}/resume", json={})
    assert (response.status_code, response.json()["message"]) == (409, f"Sandbox {made} is already running")
    await pause(client, made)
    response = await client.post(f"/sandboxes/{made}/pause", json={"memory": True})
    assert (response.status_code, response.json()["message"]) == (
        409, f"Error pausing sandbox - sandbox '{made}' is already paused",
    )  # fmt: skip
    for path, body in (("timeout", {"timeout": 5}), ("refreshes", {"duration": 5})):
        assert (await client.post(f"/sandboxes/{made}/{path}", json=body)).status_code == 404
    assert (await client.delete(f"/sandboxes/{made}")).status_code == 204
    assert (await client.delete(f"/sandboxes/{made}")).status_code == 404


@pytest.mark.parametrize("path", ["/v2/sandboxes/{}/connect", "/sandboxes/{}/connect"])
async def test_connect_resumes(client: httpx.AsyncClient, running: Running, path: str) -> None:
    """A paused one: 201, same id and token, a fresh start and the asked time; a running one: 200, never shortened."""
    made = await create(client, timeout=100)
    path = path.format(made["sandboxID"])
    await pause(client, made["sandboxID"])
    running.world.clock.advance(1000)
    response = await client.post(path, json={"timeout": 50})
    assert response.status_code == 201
    assert {key: response.json()[key] for key in made} == made
    after = await detail(client, made["sandboxID"])
    started, end = (datetime.fromisoformat(after[key]) for key in ("startedAt", "endAt"))
    assert (started, end - started) == (running.world.clock.now(), timedelta(seconds=50))
    assert "keepsMemory" not in after
    response = await client.post(path, json={"timeout": 5})
    assert response.status_code == 200
    assert (await detail(client, made["sandboxID"]))["endAt"] == after["endAt"]


async def test_a_connect_without_a_timeout_remembers_the_configured_one(client: httpx.AsyncClient) -> None:
    """What was configured is used again when it is longer than the default, and survives a timeout of 0."""
    for configured, expected in ((1000, 1000), (20, 300)):
        made = (await create(client, timeout=configured, autoPause=True))["sandboxID"]
        await pause(client, made)
        assert (await client.post(f"/v2/sandboxes/{made}/connect")).status_code == 201
        after = await detail(client, made)
        lifetime = datetime.fromisoformat(after["endAt"]) - datetime.fromisoformat(after["startedAt"])
        assert lifetime == timedelta(seconds=expected)


async def test_the_old_resume(client: httpx.AsyncClient) -> None:
    """`resume` gives 15 s without a timeout, and sets whether the end pauses."""
    made = (await create(client))["sandboxID"]
    await pause(client, made)
    assert (await client.post(f"/sandboxes/{made}/resume", json={"autoPause": True})).status_code == 201
    after = await detail(client, made)
    assert after["lifecycle"] == {"autoResume": False, "onTimeout": "pause"}
    lifetime = datetime.fromisoformat(after["endAt"]) - datetime.fromisoformat(after["startedAt"])
    assert lifetime == timedelta(seconds=15)


async def test_memory_false_starts_anew(client: httpx.AsyncClient, running: Running) -> None:
    """`memory: false` at connect asks the node for a cold start."""
    made = SandboxId((await create(client))["sandboxID"])
    await pause(client, made)
    assert (await client.post(f"/v2/sandboxes/{made}/connect", json={"memory": False})).status_code == 201
    assert running.world.node.requests[made].keep_memory is False


@pytest.mark.parametrize("path", ["/sandboxes", "/v2/sandboxes"])
async def test_lifecycle_options_are_taken_and_told(client: httpx.AsyncClient, running: Running, path: str) -> None:
    """autoPause, autoPauseMemory, autoResume and the idle timeout reach the row; the detail repeats E2B's."""
    made = await create(client, path, autoPause=True, autoResume={"enabled": True})
    assert (await detail(client, made["sandboxID"]))["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}
    other = await create(
        client, path, autoPause=True, autoPauseMemory=False, metadata={"firebrick.idleTimeout": "60"}
    )  # fmt: skip
    row = await running.row(SandboxId(other["sandboxID"]))
    assert (row.auto_pause_memory, row.auto_resume, row.idle_timeout_s) == (False, False, 60)


async def test_a_node_that_cannot_pause_is_told_once(client: httpx.AsyncClient, running: Running) -> None:
    """A refusal of the node is 500 with its sentence and no retry; the sandbox runs on."""
    made = (await create(client))["sandboxID"]

    def refuse() -> None:
        raise Internal("The sandbox could not be paused and runs on.")

    running.world.node.before["pause_sandbox"] = refuse
    response = await client.post(f"/sandboxes/{made}/pause")
    assert (response.status_code, response.headers["should-retry"]) == (500, "false")
    running.world.node.before.clear()
    assert (await detail(client, made))["state"] == "running"


async def test_a_silent_guest_may_forbid_the_pause(client: httpx.AsyncClient, running: Running) -> None:
    """With requireHealthyGuest a sandbox whose agent does not answer is not paused: 503, and it runs on."""
    made = (await create(client))["sandboxID"]

    def refuse() -> None:
        raise WrongState("The sandbox's guest agent does not answer.")

    running.world.node.before["pause_sandbox"] = refuse
    response = await client.post(f"/sandboxes/{made}/pause", json={"requireHealthyGuest": True})
    assert response.status_code == 503
    assert "does not answer" in response.json()["message"]
    running.world.node.before.clear()
    assert (await detail(client, made))["state"] == "running"
    await pause(client, made, requireHealthyGuest=True)


async def test_a_silent_guest_is_told(client: httpx.AsyncClient, running: Running) -> None:
    """In info, list and timeline of what was paused; a resume that finds it silent still says what to do instead."""
    made = (await create(client))["sandboxID"]
    running.world.node.is_silent = True
    await pause(client, made)
    assert (await detail(client, made))["envdUnresponsiveAtPause"] is True
    (listed,) = (await client.get("/v2/sandboxes?state=paused")).json()
    assert listed["envdUnresponsiveAtPause"] is True
    events = (await client.get(f"/sandboxes/{made}/why")).json()["events"]
    assert "Its guest agent did not answer." in events[-1]["detail"]

    def silent() -> None:
        raise Unavailable("The guest agent did not take its settings.")

    running.world.node.before["resume_sandbox"] = silent
    refused = await client.post(f"/v2/sandboxes/{made}/connect", json={})
    assert (refused.status_code, refused.json()["error_code"]) == (409, "sandbox_snapshot_guest_agent_unresponsive")
    running.world.node.before.clear()
    running.world.node.is_silent = False
    assert (await client.post(f"/v2/sandboxes/{made}/connect", json={"memory": False})).status_code == 201
    await pause(client, made)
    assert (await detail(client, made))["envdUnresponsiveAtPause"] is False


async def test_snapshots(client: httpx.AsyncClient, running: Running) -> None:
    """Unnamed: `<template>:default` without names. Named: `<team>/<name>:<tag>`. Both create sandboxes; delete once."""
    made = SandboxId((await create(client))["sandboxID"])
    unnamed = (await client.post(f"/sandboxes/{made}/snapshots", json={})).json()
    assert unnamed["names"] == []
    assert unnamed["snapshotID"].endswith(":default")
    response = await client.post(f"/sandboxes/{made}/snapshots", json={"name": " My_Snap-1:V2 ", "memory": False})
    assert response.status_code == 201
    named = response.json()
    assert named == {"snapshotID": "default/my_snap-1:v2", "names": ["default/my_snap-1"]}
    for source in (unnamed["snapshotID"], named["snapshotID"], "my_snap-1:v2", unnamed["snapshotID"][:-8]):
        child = await create(client, templateID=source)
        request = running.world.node.requests[SandboxId(child["sandboxID"])]
        assert request.snapshot_id in running.world.node.snapshots
        assert child.get("alias") == (None if "my_snap" not in source else "default/my_snap-1")
    assert (await client.post("/v2/sandboxes", json={"templateID": "my_snap-1"})).status_code == 404
    assert (await client.post("/v2/sandboxes", json={"templateID": "my_snap-1:v3"})).status_code == 404
    assert (await client.get("/templates")).json()[0]["names"] == ["base"]
    for item in (unnamed, named):
        path = "/templates/" + item["snapshotID"].replace("/", "%2F")
        assert (await client.delete(path)).status_code == 204
        assert (await client.delete(path)).status_code == 404
        assert (await client.post("/v2/sandboxes", json={"templateID": item["snapshotID"]})).status_code == 404
    await wait_for(lambda: running.world.node.snapshots == {})
    assert (await client.get("/snapshots")).json() == []
    await running.assert_consistent()


async def test_a_name_means_the_newest(client: httpx.AsyncClient, running: Running) -> None:
    """A snapshot under a name in use takes its place, for one id; the old one is deleted."""
    made = SandboxId((await create(client))["sandboxID"])
    first, second = [
        (await client.post(f"/sandboxes/{made}/snapshots", json={"name": "again"})).json() for _ in range(2)
    ]
    assert first == second
    await wait_for(lambda: len(running.world.node.snapshots) == 1)
    assert len((await client.get("/snapshots")).json()) == 1
    child = await create(client, templateID="again")
    (kept,) = running.world.node.snapshots
    assert running.world.node.requests[SandboxId(child["sandboxID"])].snapshot_id == kept
    await client.delete("/templates/again")


async def test_snapshot_pages_and_filters(client: httpx.AsyncClient) -> None:
    """Newest first in pages; by source, by name with and without the team, with and without a tag."""
    one, two = [(await create(client))["sandboxID"] for _ in range(2)]
    for sandbox_id, name in ((one, "a:x"), (one, "a:y"), (two, None)):
        await client.post(f"/sandboxes/{sandbox_id}/snapshots", json={} if name is None else {"name": name})
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 1}
    while True:
        response = await client.get("/snapshots", params=params)
        seen += [item["snapshotID"] for item in response.json()]
        if "x-next-token" not in response.headers:
            break
        params["nextToken"] = response.headers["x-next-token"]
    assert len(seen) == len(set(seen)) == 3
    for query, count in (
        (f"sandboxID={one}", 2), (f"sandboxID={new_sandbox_id()}", 0), ("name=a", 2), ("name=default/a", 2),
        ("name=a:x", 1), ("name=a:z", 0), ("name=none", 0), (f"name={seen[0]}", 1),
    ):  # fmt: skip
        assert len((await client.get(f"/snapshots?{query}")).json()) == count, query
    assert (await client.get("/snapshots?nextToken=x")).status_code == 400
    assert (await client.delete("/templates/a")).status_code == 204
    (left,) = (await client.get("/snapshots")).json()
    assert left["names"] == []
    assert (await client.delete("/templates/" + left["snapshotID"])).status_code == 204


@pytest.mark.parametrize(
    ("name", "words"),
    [("other/a", "must match your team 'default'"), ("a b", "name:"), ("", "name"), ("a:b:c", "tag"), ("a:*", "tag")],
)
async def test_bad_names(client: httpx.AsyncClient, name: str, words: str) -> None:
    """A name that cannot be is 400 before anything is taken."""
    made = (await create(client))["sandboxID"]
    response = await client.post(f"/sandboxes/{made}/snapshots", json={"name": name})
    assert response.status_code == 400
    assert words in response.json()["message"]


async def test_a_shipped_template_cannot_be_deleted(client: httpx.AsyncClient) -> None:
    """What comes with Firebrick is nobody's to delete."""
    assert (await client.delete("/templates/base")).status_code == 403
    assert (await client.delete("/templates/nothing")).status_code == 404


async def test_forks(client: httpx.AsyncClient, running: Running) -> None:
    """n forks are n sandboxes with ids and tokens of their own and the source's metadata; nothing private is left."""
    made = await create(client, metadata={"a": "b"}, envVars={"X": "1"})
    response = await client.post(f"/sandboxes/{made['sandboxID']}/fork", json={"count": 3, "timeout": 60})
    assert response.status_code == 201
    forks = [item["sandbox"] for item in response.json()]
    assert len({item["sandboxID"] for item in forks} | {made["sandboxID"]}) == 4
    assert len({item["envdAccessToken"] for item in forks} | {made["envdAccessToken"]}) == 4
    after = await detail(client, forks[0]["sandboxID"])
    assert (after["metadata"], after["alias"]) == ({"a": "b"}, "base")
    assert running.world.node.requests[forks[0]["sandboxID"]].env == {"X": "1"}
    await wait_for(lambda: running.world.node.snapshots == {})
    assert (await client.get("/snapshots")).json() == []


async def test_forks_that_find_no_room_are_told_one_by_one(client: httpx.AsyncClient) -> None:
    """Forks beyond the team's limit are errors in their places; the request succeeds."""
    made = (await create(client))["sandboxID"]
    results = (await client.post(f"/sandboxes/{made}/fork", json={"count": 25})).json()
    assert [sorted(item) for item in results].count(["sandbox"]) == 19
    assert {item["error"]["code"] for item in results if "error" in item} == {429}
    for count in (0, 101):
        assert (await client.post(f"/sandboxes/{made}/fork", json={"count": count})).status_code == 400


async def test_a_paused_sandbox_can_be_forked(client: httpx.AsyncClient) -> None:
    """More than E2B allows: a paused source is forked and stays paused."""
    made = (await create(client))["sandboxID"]
    await pause(client, made)
    (result,) = (await client.post(f"/sandboxes/{made}/fork")).json()
    assert (await detail(client, result["sandbox"]["sandboxID"]))["state"] == "running"
    assert (await detail(client, made))["state"] == "paused"


async def test_a_timeout_can_be_taken_back(client: httpx.AsyncClient, running: Running) -> None:
    """`recover` brings back what its timeout ended, paused; a second time, and after a kill, it is 409."""
    made = SandboxId((await create(client, timeout=3))["sandboxID"])
    await running.wait_ended(made, turn_s=0.5)
    assert (await client.get(f"/sandboxes/{made}")).status_code == 404
    response = await client.post(f"/sandboxes/{made}/recover")
    assert (response.status_code, response.json()["state"], response.json()["keepsMemory"]) == (200, "paused", False)
    assert (await client.post(f"/sandboxes/{made}/recover")).status_code == 409
    await client.delete(f"/sandboxes/{made}")
    await running.wait_ended(made)
    assert (await client.post(f"/sandboxes/{made}/recover")).status_code == 409
    assert (await client.post(f"/sandboxes/{new_sandbox_id()}/recover")).status_code == 404


async def test_metrics_over_time(client: httpx.AsyncClient, running: Running) -> None:
    """Samples every few seconds, by window; old ones are thinned to one a minute; they outlive a pause."""
    made = (await create(client, timeout=20_000))["sandboxID"]
    clock, start = running.world.clock, running.world.clock.now()

    async def points(query: str = "") -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = (await client.get(f"/sandboxes/{made}/metrics{query}")).json()
        return answer

    async def has_ten() -> bool:
        clock.advance(5)
        return len(await points()) >= 10

    await wait_for(has_ten)
    first = int(start.timestamp())
    assert 0 < len(await points(f"?start={first}&end={first + 21}")) <= 6
    assert await points(f"?start={first - 7200}&end={first - 3600}") == []
    await pause(client, made)
    count = len(await points())
    clock.advance(FULL.total_seconds())

    async def is_thinned() -> bool:
        clock.advance(5)
        return len(await points()) < count

    await wait_for(is_thinned)


async def test_team_metrics(client: httpx.AsyncClient, running: Running) -> None:
    """How many run and start, over time and at most; another team's are forbidden."""
    path = f"/teams/{running.team.team_id}/metrics"
    assert (await client.get(path)).json() == []
    await create(client)

    async def has_some() -> bool:
        running.world.clock.advance(ROUND_S)
        return len((await client.get(path)).json()) >= 2

    await wait_for(has_some)
    assert (await client.get(path)).json()[0]["concurrentSandboxes"] == 1
    top = (await client.get(f"{path}/max?metric=concurrent_sandboxes")).json()
    assert top["value"] == 1
    assert (await client.get(f"{path}/max?metric=sandbox_start_rate")).json()["value"] > 0
    assert (await client.get(f"{path}/max?metric=other")).status_code == 400
    assert (await client.get(f"{path}?start=2&end=1")).status_code == 400
    assert (await client.get("/teams/other/metrics")).status_code == 403
    assert all(row.state is SandboxState.RUNNING for row in await running.living())
