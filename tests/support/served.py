"""A control plane that serves its API over HTTP on loopback, in a thread with a loop of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from firebrick.api.app import create_app
from tests.support.control import Running, make_world, run_control
from tests.support.instance import free_ports
from tests.support.wait import wait_for_sync


@dataclass(slots=True, kw_only=True)
class Served:
    """`headers` open every kind of route."""

    base_url: str
    headers: dict[str, str]
    sandbox_id: str


@contextmanager
def served(directory: Path) -> Iterator[Served]:
    """Serve until the block ends; the node is the one in memory, the store a real one."""
    port = free_ports(1)[0]
    found: list[Served] = []
    failed: list[BaseException] = []
    stopping: list[uvicorn.Server] = []

    async def serve() -> None:
        world = make_world(directory)
        async with run_control(world) as running:
            server = uvicorn.Server(
                uvicorn.Config(create_app(running.control), port=port, log_config=None, lifespan="off")
            )  # fmt: skip
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
            stopping.append(server)
            task = asyncio.ensure_future(server.serve())
            found.append(await _prepare(running, f"http://127.0.0.1:{port}"))
            await task

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the test must see it
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_for_sync(lambda: bool(failed) or bool(found and stopping[0].started), timeout_s=30)
        assert not failed, failed
        yield found[0]
    finally:
        for server in stopping:
            server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        assert not failed, failed


async def _prepare(running: Running, base_url: str) -> Served:
    control = running.control
    user = await control.users.create("ann@example.org", team_ids=[running.team.team_id])
    token, _ = await control.users.issue_jwt(user.user_id, lifetime_s=86_400)
    sandbox = await running.create(timeout_s=3600)
    admin_token = running.world.config.admin_token_file.read_text().strip()
    headers = {
        "X-API-Key": running.key or "",
        "X-Admin-Token": admin_token,
        "X-Team-ID": running.team.team_id,
        "Authorization": f"Bearer {token}",
    }
    return Served(base_url=base_url, headers=headers, sandbox_id=sandbox.sandbox_id)
