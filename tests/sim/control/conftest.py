import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from firebrick.api.app import create_app
from firebrick.model.sandbox import SandboxState
from tests.support.control import Running, World, make_world, run_control


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
async def running(world: World) -> AsyncIterator[Running]:
    """A control plane; at the end everything it knows must agree with everything there is."""
    async with run_control(world) as plane:
        yield plane
        await plane.assert_consistent()


FORBIDDEN = re.compile(
    r"Traceback|File \"|/home/|/srv/|/root/|/var/lib/|sqlite3\.|sqlalchemy|10\.\d+\.|127\.0\.0\.1|e2b_[0-9a-f]{8,}"
)


@pytest.fixture
async def client(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the first team's key; every error it meets must have the one shape."""

    async def check(response: httpx.Response) -> None:
        assert response.headers["x-request-id"]
        if response.status_code >= 400:
            await response.aread()
            body = response.json()
            assert body["code"] == response.status_code
            assert isinstance(body["message"], str)
            assert len(body["message"]) <= 300
            assert not FORBIDDEN.search(response.text)

    transport = httpx.ASGITransport(create_app(running.control), raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://api", headers={"X-API-Key": running.key or ""},
        event_hooks={"response": [check]},
    ) as client:  # fmt: skip
        yield client
    for row in await running.living():
        if row.state is not SandboxState.ENDING:
            await running.control.sandboxes.kill(row.team_id, row.sandbox_id)
        await running.wait_ended(row.sandbox_id)


async def create(client: httpx.AsyncClient, path: str = "/v2/sandboxes", **body: Any) -> dict[str, Any]:
    response = await client.post(path, json={"templateID": "base"} | body)
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer
