"""The catalog seam's promises, over every implementation: in memory, and embedded over its socket."""

import asyncio
import socket as sockets
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from firebrick.catalog.base import ACK_TIMEOUT_S, CatalogReader, Route, RouteState, Tombstone
from firebrick.catalog.embedded import EmbeddedCatalogServer
from firebrick.catalog.follower import CatalogFollower
from firebrick.catalog.memory import MemoryCatalog
from firebrick.catalog.table import TOMBSTONE_LIMIT, RouteTable
from firebrick.clock import SystemClock
from firebrick.model.errors import Forbidden, NotFound, Unavailable, WrongState
from firebrick.model.ids import MachineId, SandboxId, new_machine_id, new_sandbox_id
from tests.support.wait import wait_for

Catalog = MemoryCatalog | EmbeddedCatalogServer
Opened = tuple[Catalog, CatalogReader]


def make_route(sandbox_id: SandboxId | None = None, address: str = "10.0.0.1") -> Route:
    return Route(
        sandbox_id=sandbox_id or new_sandbox_id(),
        machine_id=new_machine_id(),
        address=address,
        access_token="t",
        traffic_token="u",
        mask_host="localhost:${PORT}",
        https_ports=frozenset((443, 8443)),
    )


def make_paused_route() -> Route:
    return Route(sandbox_id=new_sandbox_id(), machine_id=MachineId(""), address="", state=RouteState.PAUSED)


@asynccontextmanager
async def embedded(directory: Path) -> AsyncIterator[tuple[EmbeddedCatalogServer, CatalogFollower]]:
    server = EmbeddedCatalogServer(directory / "catalog.sock")
    follower = CatalogFollower(directory / "catalog.sock", SystemClock())
    await server.start()
    follower.start()
    try:
        await server.replace_all((), ())
        await wait_for(lambda: follower.is_ready)
        yield server, follower
    finally:
        await follower.close()
        await server.close()


@pytest.fixture(params=["memory", "embedded"])
async def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opened]:
    if request.param == "memory":
        both = MemoryCatalog()
        yield both, both
        return
    async with embedded(tmp_path) as (server, follower):
        yield server, follower
    assert not (tmp_path / "catalog.sock").exists()


async def test_publish_is_seen_when_it_returns(catalog: Opened) -> None:
    """The first request after a create finds its route."""
    writer, reader = catalog
    route = make_route()
    await writer.publish(route)
    assert reader.route(route.sandbox_id) == route
    assert reader.routes() == (route,)


async def test_withdraw_leaves_a_tombstone(catalog: Opened) -> None:
    """The first request after a kill finds no route, but the reason; withdrawing again changes nothing."""
    writer, reader = catalog
    route = make_route()
    await writer.publish(route)
    for _ in range(2):
        await writer.withdraw(route.sandbox_id, "killed")
    assert reader.route(route.sandbox_id) is None
    assert reader.tombstone(route.sandbox_id) == Tombstone(sandbox_id=route.sandbox_id, reason="killed")
    again = make_route(route.sandbox_id)
    await writer.publish(again)
    assert reader.route(route.sandbox_id) == again
    assert reader.tombstone(route.sandbox_id) is None


async def test_waking_brings_the_running_route(catalog: Opened) -> None:
    """The control plane's waker is called with the id, and what it publishes is in the table when `wake` returns."""
    writer, reader = catalog
    paused = make_paused_route()
    await writer.publish(paused)
    assert reader.route(paused.sandbox_id) == paused
    running = make_route(paused.sandbox_id)

    async def resume(sandbox_id: SandboxId) -> None:
        assert sandbox_id == paused.sandbox_id
        await writer.publish(running)

    writer.waker = resume
    await reader.wake(paused.sandbox_id)
    assert reader.route(paused.sandbox_id) == running


@pytest.mark.parametrize("error", [NotFound("gone"), Forbidden("not by traffic"), WrongState("ending")])
async def test_a_refused_wake_raises_what_the_control_plane_raised(catalog: Opened, error: Exception) -> None:
    """Class and message arrive at the edge."""
    writer, reader = catalog

    async def refuse(_: SandboxId) -> None:
        raise error

    writer.waker = refuse
    with pytest.raises(type(error), match=str(error)):
        await reader.wake(new_sandbox_id())


async def test_without_a_waker_nothing_is_woken(catalog: Opened) -> None:
    """It is said at once, not after a timeout."""
    with pytest.raises(Unavailable, match="cannot resume"):
        await catalog[1].wake(new_sandbox_id())


async def test_changes_are_told_in_order(catalog: Opened) -> None:
    """A consumer hears every change since it asked, in the order it was made."""
    writer, reader = catalog
    changes = reader.changes()
    first, second = make_route(), make_route()
    async with asyncio.TaskGroup() as tasks:
        heard = tasks.create_task(_take(changes, 3))
        await writer.publish(first)
        await writer.publish(second)
        await writer.withdraw(first.sandbox_id, "timeout")
    assert heard.result() == [first, second, Tombstone(sandbox_id=first.sandbox_id, reason="timeout")]


async def test_acknowledgement_waits_for_the_consumer(catalog: Opened) -> None:
    """`withdraw` returns only after the consumer that closes connections asked for the next change."""
    writer, reader = catalog
    route = make_route()
    await writer.publish(route)
    acted = asyncio.Event()
    may_act = asyncio.Event()

    async def consume() -> None:
        async for _ in reader.changes():
            await may_act.wait()
            acted.set()

    async with asyncio.TaskGroup() as tasks:
        consumer = tasks.create_task(consume())
        await asyncio.sleep(0)
        withdrawal = tasks.create_task(writer.withdraw(route.sandbox_id, "killed"))
        await wait_for(lambda: reader.route(route.sandbox_id) is None)
        assert not withdrawal.done()
        may_act.set()
        await withdrawal
        assert acted.is_set()
        consumer.cancel()


async def test_a_stuck_consumer_delays_a_change_only_so_long(catalog: Opened) -> None:
    """After ACK_TIMEOUT_S the writer goes on without the edge."""
    writer, reader = catalog
    changes = reader.changes()
    await _busy_with(changes, writer, make_route())
    start = time.monotonic()
    await writer.publish(make_route())
    assert time.monotonic() - start < ACK_TIMEOUT_S * 4


async def test_replace_all_withdraws_what_is_missing(catalog: Opened) -> None:
    """A new table is told as a difference: one withdrawal, one new route, nothing of what stayed."""
    writer, reader = catalog
    stays, goes, comes = make_route(), make_route(), make_route()
    await writer.replace_all((stays, goes), ())
    changes = reader.changes()
    stone = Tombstone(sandbox_id=goes.sandbox_id, reason="oom")
    async with asyncio.TaskGroup() as tasks:
        heard = tasks.create_task(_take(changes, 2))
        await writer.replace_all((stays, comes), (stone,))
    assert heard.result() == [stone, comes]
    assert reader.tombstone(goes.sandbox_id) == stone


async def test_twenty_changes_at_once(catalog: Opened) -> None:
    """Twenty creates at once are all seen when they return, within one acknowledgement timeout."""
    writer, reader = catalog
    routes = [make_route() for _ in range(20)]
    start = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for route in routes:
            tasks.create_task(writer.publish(route))
    assert time.monotonic() - start < ACK_TIMEOUT_S
    assert all(reader.route(route.sandbox_id) == route for route in routes)


def test_tombstones_are_bounded() -> None:
    """Only the newest 10,000 tombstones are kept."""
    table = RouteTable()
    stones = [Tombstone(sandbox_id=SandboxId(f"i{number}"), reason="killed") for number in range(TOMBSTONE_LIMIT + 5)]
    for stone in stones:
        table.apply(stone)
    assert list(table.tombstones.values()) == stones[5:]
    table.replace((), stones)
    assert list(table.tombstones.values()) == stones[5:]


async def test_the_table_outlives_the_server(tmp_path: Path) -> None:
    """While the control plane restarts the edge keeps its routes; then it hears only the difference."""
    async with embedded(tmp_path) as (server, follower):
        stays, goes = make_route(), make_route()
        await server.publish(stays)
        await server.publish(goes)
        changes = follower.changes()
        await server.close()
        assert follower.route(stays.sandbox_id) == stays
        successor = EmbeddedCatalogServer(tmp_path / "catalog.sock")
        await successor.start()
        try:
            # Not filled yet: nothing may be taken away.
            assert follower.route(goes.sandbox_id) == goes
            await successor.replace_all((stays,), ())
            start = time.monotonic()
            assert await anext(changes) == Tombstone(sandbox_id=goes.sandbox_id, reason="")
            assert time.monotonic() - start < 5
            assert follower.routes() == (stays,)
        finally:
            await successor.close()


async def test_a_lagging_follower_is_not_waited_for_twice(tmp_path: Path) -> None:
    """One stuck edge costs one timeout, not one per create; it is waited for again once it has caught up."""
    async with embedded(tmp_path) as (server, follower):
        changes = follower.changes()
        await _busy_with(changes, server, make_route())
        await server.publish(make_route())
        start = time.monotonic()
        for _ in range(10):
            await server.publish(make_route())
        assert time.monotonic() - start < ACK_TIMEOUT_S
        async with asyncio.TaskGroup() as tasks:
            drain = tasks.create_task(_take(changes, 10_000))

            async def is_waited_for() -> bool:
                route = make_route()
                await server.publish(route)
                return follower.route(route.sandbox_id) == route

            await wait_for(is_waited_for)
            drain.cancel()


async def test_two_followers_both_see_a_change(tmp_path: Path) -> None:
    """Every connected edge has seen the change when `publish` returns."""
    async with AsyncExitStack() as stack:
        server, first = await stack.enter_async_context(embedded(tmp_path))
        second = CatalogFollower(tmp_path / "catalog.sock", SystemClock())
        second.start()
        stack.push_async_callback(second.close)
        await wait_for(lambda: second.is_ready)
        route = make_route()
        await server.publish(route)
        assert first.route(route.sandbox_id) == second.route(route.sandbox_id) == route


async def test_the_socket_is_private_and_replaced_when_stale(tmp_path: Path) -> None:
    """Mode 0600; a dead process's socket file is replaced, a living one's and a foreign file are not."""
    path = tmp_path / "catalog.sock"
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(path))
    server = EmbeddedCatalogServer(path)
    await server.start()
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(WrongState):
            await EmbeddedCatalogServer(path).start()
    finally:
        await server.close()
    (tmp_path / "file").write_text("precious")
    for wrong in (tmp_path / "file", tmp_path / "missing" / "catalog.sock"):
        with pytest.raises(Unavailable):
            await EmbeddedCatalogServer(wrong).start()
    assert (tmp_path / "file").read_text() == "precious"


async def _take(changes: AsyncIterator[Route | Tombstone], count: int) -> list[Route | Tombstone]:
    return [await anext(changes) for _ in range(count)]


async def _busy_with(changes: AsyncIterator[Route | Tombstone], writer: Catalog, route: Route) -> None:
    """Leave the consumer with one change in hand: it has not asked for the next."""
    publish: Callable[[Route], Awaitable[None]] = writer.publish
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish(route))
        assert await anext(changes) == route
