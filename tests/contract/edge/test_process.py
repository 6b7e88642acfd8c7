"""The edge as a process, with a catalog server in the place of the control plane."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firebrick.catalog.base import ACK_TIMEOUT_S, Route
from firebrick.catalog.embedded import EmbeddedCatalogServer
from firebrick.model.ids import new_machine_id, new_sandbox_id
from tests.contract.edge.rig import Client, Response, Stub, get, say_ok
from tests.support.environment import clean_environ
from tests.support.wait import wait_for


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def edge_process(directory: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    env = {
        **clean_environ(),
        "FIREBRICK_DATA_DIR": str(directory),
        "FIREBRICK_EDGE_PORT": str(port),
        "FIREBRICK_API_PORT": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    # NOTE: not by uvloop, which forks: where this process has used gRPC, the child would hang in its fork handlers.
    with (directory / "edge.log").open("wb") as log:
        child = subprocess.Popen([sys.executable, "-m", "firebrick.main.edge"], env=env, stderr=log)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


async def ask(port: int, raw: bytes) -> Response | None:
    try:
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
    except OSError:
        return None
    try:
        await client.send(raw)
        return await client.response()
    finally:
        client.close()


async def test_the_edge_process_follows_the_catalog(tmp_path: Path) -> None:
    """Before the first table 503, then routes at once; routes survive a control plane's restart; SIGTERM ends it."""
    (tmp_path / "run").mkdir()
    path, port = tmp_path / "run" / "catalog.sock", free_port()
    stub = await Stub(say_ok, "127.66.3.2").start()
    routes = [Route(sandbox_id=new_sandbox_id(), machine_id=new_machine_id(), address=stub.address) for _ in range(20)]
    asking = get(routes[0], stub.port)
    server, successor = EmbeddedCatalogServer(path), EmbeddedCatalogServer(path)
    with edge_process(tmp_path, port) as child:
        try:
            health = b"GET /__firebrick/health HTTP/1.1\r\nHost: localhost\r\n\r\n"

            async def is_up() -> Response | None:
                assert child.poll() is None, (tmp_path / "edge.log").read_text()
                return await ask(port, health)

            await wait_for(is_up, timeout_s=90)
            early = await ask(port, asking)
            assert early is not None
            assert early.status == 503
            await server.start()
            await server.replace_all((), ())
            await wait_for(lambda: server.follower_count() == 1)
            start = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for route in routes:
                    tasks.create_task(server.publish(route))
            assert time.monotonic() - start < ACK_TIMEOUT_S
            for route in routes:
                answer = await ask(port, get(route, stub.port))
                assert answer is not None
                assert answer.status == 200
            await server.close()
            alone = await ask(port, asking)
            assert alone is not None
            assert alone.status == 200
            await successor.start()
            await successor.replace_all(routes[:1], ())
            await wait_for(lambda: successor.follower_count() == 1)
            await successor.publish(routes[1])
            for route, status in ((routes[0], 200), (routes[1], 200), (routes[2], 502)):
                answer = await ask(port, get(route, stub.port))
                assert answer is not None
                assert answer.status == status
            child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(6):
                assert await asyncio.to_thread(child.wait) == 0
        finally:
            await server.close()
            await successor.close()
            await stub.close()


async def test_the_edge_process_refuses_a_taken_port(tmp_path: Path) -> None:
    """A port that is in use ends the process with status 1, for the supervisor to report."""
    stub = await Stub(say_ok, "127.0.0.1").start()
    with edge_process(tmp_path, stub.port) as child:
        assert await asyncio.to_thread(child.wait, 90) == 1
    await stub.close()
