"""The node over its socket: the same answers and the same errors as in process."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from firebrick.model.errors import (
    BY_CODE,
    FirebrickError,
    Internal,
    Invalid,
    NoCapacity,
    NotFound,
    Unavailable,
)
from firebrick.model.ids import SandboxId, new_machine_id, new_sandbox_id, new_snapshot_id
from firebrick.model.machine import ExitCause, RuntimeName
from firebrick.node.service import NodeServer
from firebrick.node.supervisor import NodeAgent
from firebrick.rpc import convert
from firebrick.rpc.errors import status_of
from firebrick.rpc.node_api import (
    NodeSandbox,
    NodeSandboxState,
    NodeSnapshot,
    PausedSandbox,
    PauseSandbox,
)
from firebrick.rpc.node_client import GrpcNodeClient
from tests.sim.node.world import BASE, World, request
from tests.support.wait import wait_for


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "node")


@pytest.fixture
async def agent(world: World) -> AsyncIterator[NodeAgent]:
    async with world.agent() as agent:
        yield agent


@pytest.fixture
async def client(tmp_path: Path, agent: NodeAgent) -> AsyncIterator[GrpcNodeClient]:
    server = NodeServer(agent, tmp_path / "run" / "node.sock")
    await server.start()
    client = GrpcNodeClient(f"unix:{tmp_path}/run/node.sock")
    yield client
    await client.close()
    await server.stop()
    assert not (tmp_path / "run" / "node.sock").exists()


async def test_every_answer_is_the_same_over_the_wire(agent: NodeAgent, client: GrpcNodeClient) -> None:
    """Ids, times to the microsecond, maps and enums survive the way."""
    started = await client.start_sandbox(request(runtime=RuntimeName.SIM, metadata={"ключ": "значение"}))
    assert await client.list_sandboxes() == await agent.list_sandboxes() == (started,)
    assert await client.describe() == await agent.describe()
    usage = await client.read_usage(started.sandbox_id)
    assert usage.memory_limit_bytes == 512 << 20
    logs = await client.read_logs(started.sandbox_id, start_ms=0, limit=5)
    assert logs == await agent.read_logs(started.sandbox_id, start_ms=0, limit=5)
    assert logs[0].fields == {"sandboxID": started.sandbox_id}
    assert await client.kill_sandbox(started.sandbox_id)
    assert not await client.kill_sandbox(started.sandbox_id)


@pytest.mark.parametrize("stored_bytes", [None, 0, 7])
def test_what_is_paused_or_saved_survives_the_way(stored_bytes: int | None) -> None:
    """Each value of the pause's messages comes back as it went, also those that may be absent."""
    now = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)
    sandbox_id, machine_id = new_sandbox_id(), new_machine_id()
    start = replace(request(), snapshot_id=new_snapshot_id(), keep_memory=False)
    assert convert.start_from_wire(convert.start_to_wire(start)) == start
    sandbox = NodeSandbox(
        sandbox_id=sandbox_id, machine_id=machine_id, runtime=RuntimeName.SIM, address="", started_at=now,
        from_warm=False, state=NodeSandboxState.KEPT, keeps_memory=True, kept_memory=True, paused_at=now,
        saved_bytes=1 << 33,
    )  # fmt: skip
    assert convert.sandbox_from_wire(convert.sandbox_to_wire(sandbox)) == sandbox
    pause = PauseSandbox(sandbox_id=sandbox_id, keep_memory=True)
    assert convert.pause_from_wire(convert.pause_to_wire(pause)) == pause
    paused = PausedSandbox(
        sandbox_id=sandbox_id, machine_id=machine_id, keeps_memory=True, paused_at=now, disk_bytes=1 << 40
    )
    assert convert.paused_from_wire(convert.paused_to_wire(paused)) == paused
    snapshot = NodeSnapshot(
        snapshot_id=new_snapshot_id(), build_id=BASE, runtime=RuntimeName.SIM, keeps_memory=False, disk_bytes=9,
        stored_bytes=stored_bytes, created_at=now,
    )  # fmt: skip
    assert convert.snapshot_from_wire(convert.snapshot_to_wire(snapshot)) == snapshot


async def test_an_exit_arrives_on_the_stream(world: World, client: GrpcNodeClient) -> None:
    """With sandbox, machine, cause and code."""
    exits = client.watch_exits()
    first = asyncio.ensure_future(anext(exits))
    await client.describe()
    started = await client.start_sandbox(request())
    world.runtime.exit_machine(started.machine_id, ExitCause.GUEST_EXIT, 7)
    ended = await first
    assert (ended.sandbox_id, ended.cause, ended.exit_code) == (started.sandbox_id, ExitCause.GUEST_EXIT, 7)
    await exits.aclose()  # type: ignore[attr-defined]


async def test_errors_keep_their_class_and_their_words(world: World, client: GrpcNodeClient) -> None:
    """What the node raised is what the caller catches."""
    with pytest.raises(NotFound, match="does not run on this node"):
        await client.read_usage(new_sandbox_id())
    with pytest.raises(Invalid, match="firecracker"):
        await client.start_sandbox(request(runtime=RuntimeName.FIRECRACKER))
    with pytest.raises(Invalid, match="not a sandbox id"):
        await client.read_logs(SandboxId("../../etc/passwd"), start_ms=0, limit=1)
    for _ in range(world.slots.size):
        await client.start_sandbox(request())
    with pytest.raises(NoCapacity, match="slots"):
        await client.start_sandbox(request())
    world.runtime.fail("usage")
    with pytest.raises(Internal):
        await client.read_usage((await client.list_sandboxes())[0].sandbox_id)


def test_every_error_has_a_status() -> None:
    """A new class of error cannot be forgotten."""
    for kind in BY_CODE.values():
        assert status_of(kind("why"))


async def test_the_socket_is_private_and_a_stale_one_is_replaced(tmp_path: Path, agent: NodeAgent) -> None:
    """Only its owner may ask the node; a file that a killed agent left is in nobody's way."""
    socket = tmp_path / "run" / "node.sock"
    socket.parent.mkdir()
    socket.touch()
    server = NodeServer(agent, socket)
    await server.start()
    assert os.stat(socket).st_mode & 0o777 == 0o600
    await server.stop()


async def test_a_client_outlives_its_node(tmp_path: Path, world: World) -> None:
    """Without a node every call is Unavailable within its deadline; with the next one it works again."""
    socket = tmp_path / "run" / "node.sock"
    client = GrpcNodeClient(f"unix:{socket}")
    with pytest.raises(Unavailable):
        await client.describe()
    for _ in range(2):
        async with world.agent() as agent:
            server = NodeServer(agent, socket)
            await server.start()
            await wait_for(lambda: answers(client))
            exits = client.watch_exits()
            watching = asyncio.ensure_future(anext(exits))
            await client.list_sandboxes()
            await server.stop()
            with pytest.raises(FirebrickError):
                await watching
    await client.close()


async def answers(client: GrpcNodeClient) -> bool:
    try:
        await client.describe()
    except Unavailable:
        return False
    return True


async def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path, agent: NodeAgent) -> None:
    """The kernel would cut it; the message says which setting to change."""
    with pytest.raises(Invalid, match="data_dir"):
        await NodeServer(agent, tmp_path / ("x" * 120) / "node.sock").start()
