"""Why a sandbox ended or was never created can be asked, by its owner alone."""

from typing import Any

import pytest

from firebrick.model.errors import NoCapacity, Unavailable
from firebrick.model.machine import ExitCause
from firebrick.rpc.node_api import LogEntry
from firebrick.store.nodes import node_set_draining
from tests.support.control import Running
from tests.support.owners import Api, open_api
from tests.support.wait import wait_for


@pytest.fixture
async def api(running: Running) -> Any:
    found = open_api(running)
    async with found.http:
        yield found


def mine(running: Running) -> dict[str, str]:
    assert running.key is not None
    return {"X-API-Key": running.key}


async def create(api: Api, running: Running, **body: Any) -> str:
    made = await api.ok("POST", "/v2/sandboxes", mine(running), json={"templateID": "base"} | body)
    return str(made["sandboxID"])


async def test_a_kill_names_the_key(api: Api, running: Running) -> None:
    """The timeline has the create with its steps' times and who killed it; the 404 tells it too, to its owner only."""
    sandbox_id = await create(api, running)
    await api.ok("DELETE", f"/sandboxes/{sandbox_id}", mine(running))
    await running.wait_ended(sandbox_id)  # type: ignore[arg-type]
    found = await api.ok("GET", f"/sandboxes/{sandbox_id}/why", mine(running))
    assert [event["kind"] for event in found["events"]] == ["started", "ending", "ended"]
    assert {"place", "reserve", "start"} <= set(found["events"][0]["facts"]["steps_ms"])
    assert running.key is not None
    shown = f"key {running.key[:6]}…{running.key[-4:]}"
    assert found["events"][1]["actor"] == shown
    assert found["summary"].startswith(f"It has ended: it was killed by {shown} at ")
    gone = await api.http.get(f"/sandboxes/{sandbox_id}", headers=mine(running))
    assert gone.json()["message"].startswith(
        f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it: it was killed by {shown} at "
    )
    _, other = await api.new_team("other")
    assert await api.status("GET", f"/sandboxes/{sandbox_id}/why", other) == 404
    assert await api.ok("GET", "/sandboxes/endings", other) == []
    assert [item["sandboxID"] for item in await api.ok("GET", "/sandboxes/endings", mine(running))] == [sandbox_id]


@pytest.mark.parametrize(
    ("cause", "detail", "words"),
    [
        (ExitCause.OOM, "python3 was killed", "it ran out of memory (python3 was killed)"),
        (ExitCause.GUEST_EXIT, "exit code 3", "its main process ended (exit code 3)"),
        (ExitCause.LOST, "", "its node was lost"),
    ],
)
async def test_ends_by_themselves(api: Api, running: Running, cause: ExitCause, detail: str, words: str) -> None:
    """A guest's own end is told with its cause and the node's words."""
    sandbox_id = await create(api, running)
    await wait_for(lambda: running.world.node.is_watched)
    running.world.node.end(sandbox_id, cause, detail=detail)  # type: ignore[arg-type]
    await running.wait_ended(sandbox_id)  # type: ignore[arg-type]
    found = await api.ok("GET", f"/sandboxes/{sandbox_id}/why", mine(running))
    assert words in found["summary"]
    assert found["events"][1]["actor"] == "system"


async def test_who_was_killed_for_memory_stands_in_the_timeline(api: Api, running: Running) -> None:
    """Name and id inside, while it lives and after its end; a node that does not answer costs only that."""
    sandbox_id = await create(api, running)
    at = running.world.clock.now()
    fields = {"limit": "memory", "source": "kernel", "name": "python3", "pid": "7"}
    running.world.node.logs[sandbox_id] = [  # type: ignore[index]
        LogEntry(timestamp=at, level="warn", message="out of memory: the kernel killed python3 (pid 7)", fields=fields)
    ]
    found = await api.ok("GET", f"/sandboxes/{sandbox_id}/why", mine(running))
    killed = next(event for event in found["events"] if event["kind"] == "out_of_memory")
    assert (killed["detail"], killed["facts"]) == ("python3 (pid 7) was killed", {"name": "python3", "pid": 7})
    await api.ok("DELETE", f"/sandboxes/{sandbox_id}", mine(running))
    await running.wait_ended(sandbox_id)  # type: ignore[arg-type]
    ended = await api.ok("GET", f"/sandboxes/{sandbox_id}/why", mine(running))
    assert "out_of_memory" in [event["kind"] for event in ended["events"]]
    running.world.node.go_down()
    dark = await api.ok("GET", f"/sandboxes/{sandbox_id}/why", mine(running))
    assert "out_of_memory" not in [event["kind"] for event in dark["events"]]
    running.world.node.come_back()


async def test_an_expiry_is_told(api: Api, running: Running) -> None:
    """A timeout is the platform's doing."""
    sandbox_id = await create(api, running, timeout=5)
    await running.wait_ended(sandbox_id, turn_s=1)  # type: ignore[arg-type]
    found = await api.ok("GET", f"/sandboxes/{sandbox_id}/why", mine(running))
    assert "it reached its timeout" in found["summary"]
    assert (found["endReason"], found["events"][1]["actor"]) == ("timeout", "system")


async def test_no_capacity_tells_of_each_node(api: Api, running: Running) -> None:
    """A create that no node can take leaves an autopsy with every node's reason; the answer names its id."""
    node = running.control.platform.nodes
    async with running.control.platform.database.write() as tx:
        await node_set_draining(tx, next(iter(node.clients)), is_draining=True)
    answer = await api.http.post("/v2/sandboxes", headers=mine(running), json={"templateID": "base"})
    assert answer.status_code == 503
    sandbox_id = answer.json()["message"].split("`firebrick why ")[1].split("`")[0]
    found = await api.ok("GET", f"/sandboxes/{sandbox_id}/why", mine(running))
    assert found["summary"].startswith("It was never created")
    event = found["events"][0]
    assert (event["kind"], len(event["facts"]["nodes"])) == ("create_failed", 1)
    assert event["facts"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("error", [Unavailable("injected"), NoCapacity("injected")])
async def test_a_failed_start_is_told(api: Api, running: Running, error: Exception) -> None:
    """When the node fails, the autopsy has the error, the step's time, and the end of what was undone."""

    def fail() -> None:
        raise error

    running.world.node.before["start_sandbox"] = fail
    answer = await api.http.post("/v2/sandboxes", headers=mine(running), json={"templateID": "base"})
    running.world.node.before.clear()
    assert answer.status_code == 503
    ending = (await api.ok("GET", "/sandboxes/endings", mine(running)))[0]
    found = await api.ok("GET", f"/sandboxes/{ending['sandboxID']}/why", mine(running))
    failed = found["events"][-1]
    assert (failed["kind"], failed["detail"]) == ("create_failed", "injected")
    assert "start" in failed["facts"]["steps_ms"]


async def test_each_fork_that_fails_is_told(api: Api, running: Running) -> None:
    """One line for each child that was not created, under the id that its error names; the others live."""
    sandbox_id = await create(api, running)
    count = 0

    def fail() -> None:
        nonlocal count
        count += 1
        if count <= 2:
            raise NoCapacity("injected")

    running.world.node.before["start_sandbox"] = fail
    results = await api.ok("POST", f"/sandboxes/{sandbox_id}/fork", mine(running), json={"count": 3})
    running.world.node.before.clear()
    failed = [result["error"]["message"] for result in results if "error" in result]
    assert len(failed) == 2
    for message in failed:
        child_id = message.split("`firebrick why ")[1].split("`")[0]
        found = await api.ok("GET", f"/sandboxes/{child_id}/why", mine(running))
        assert found["summary"] == "It was never created: injected"
        assert (found["events"][-1]["kind"], found["events"][-1]["reason"]) == ("create_failed", "no_capacity")


async def test_an_autopsy_is_kept_as_long_as_the_setting_says(api: Api, running: Running) -> None:
    """A day after the end it can still be asked; after the setting's hours it is forgotten."""
    sandbox_id = await create(api, running)
    await api.ok("DELETE", f"/sandboxes/{sandbox_id}", mine(running))
    await running.wait_ended(sandbox_id)  # type: ignore[arg-type]
    running.world.clock.advance(24 * 3600)
    await api.ok("GET", f"/sandboxes/{sandbox_id}/why", mine(running))
    running.world.clock.advance(25 * 3600)

    async def is_forgotten() -> bool:
        running.world.clock.advance(60)
        return await api.status("GET", f"/sandboxes/{sandbox_id}/why", mine(running)) == 404

    await wait_for(is_forgotten)
