"""What happens to connections when a sandbox is killed, paused or moved."""

import asyncio

import pytest

from firebrick.catalog.base import Route
from firebrick.model.ids import new_machine_id
from tests.contract.edge.rig import Request, Rig, get, say_ok
from tests.support.wait import wait_for


async def stream(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begin an answer that never ends, framed as the path says."""
    match request.path:
        case "/chunked":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        case "/length":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello")
        case "/close":
            writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
        case "/upgrade":
            writer.write(b"HTTP/1.1 101 Up\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\nhello")
        case "/silent":
            pass
    await reader.read()


@pytest.mark.parametrize("path", ["/chunked", "/length", "/close", "/upgrade"])
async def test_streams_break_when_the_sandbox_is_killed(rig: Rig, path: str) -> None:
    """A stream under way ends at once, and not as if it were complete; the sandbox's connection is closed."""
    stub, route = await rig.sandbox(stream)
    client = await rig.client()
    extra = "Connection: upgrade\r\nUpgrade: raw\r\n" if path == "/upgrade" else ""
    version = b"HTTP/1.0" if path == "/close" else b"HTTP/1.1"
    await client.send(get(route, stub.port, path, extra=extra).replace(b"HTTP/1.1", version))
    await client.head()
    await client.reader.readuntil(b"hello")
    await rig.catalog.withdraw(route.sandbox_id, "killed")
    async with asyncio.timeout(1):
        with pytest.raises(ConnectionError):
            # What is left of the stream is a reset, whatever the framing.
            rest = await client.reader.read()
            assert b"0\r\n\r\n" not in rest
    await wait_for(lambda: stub.open_count == 0)
    answer = await rig.get(route, stub.port)
    assert answer.json()["message"] == "The sandbox was not found: it was killed"


async def test_unanswered_requests_are_told(rig: Rig) -> None:
    """A request that waits for its answer when the sandbox goes is answered 'not found', not dropped."""
    stub, route = await rig.sandbox(stream)
    client = await rig.client()
    await client.send(get(route, stub.port, "/silent", method="POST", extra="Content-Length: 0\r\n"))
    await wait_for(lambda: stub.requests)
    await rig.catalog.withdraw(route.sandbox_id, "oom")
    answer = await client.response()
    assert (answer.status, answer.json()["message"]) == (502, "The sandbox was not found: it ran out of memory")
    assert (await rig.get(route, stub.port)).status == 502


async def test_idle_connections_are_closed_before_the_acknowledgement(rig: Rig) -> None:
    """When `withdraw` returns, no connection into the machine is left to be used again."""
    stub, route = await rig.sandbox(say_ok)
    for _ in range(3):
        assert (await rig.get(route, stub.port)).status == 200
    assert stub.open_count > 0
    await rig.catalog.withdraw(route.sandbox_id, "killed")
    await wait_for(lambda: stub.open_count == 0)


async def test_a_recycled_address_gets_no_old_connection(rig: Rig) -> None:
    """A thousand sandboxes on one address: each request reaches the sandbox of its own time."""
    served: list[str] = []
    current = {"tag": ""}

    async def tagged(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A connection that was opened in one sandbox's life must never carry another's request.
        mine = getattr(reader, "tag", None)
        if mine is None:
            mine = reader.tag = current["tag"]  # type: ignore[attr-defined]
        served.append(mine)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(mine), mine.encode()))

    stub = await rig.stub(tagged)
    client = await rig.client()
    for number in range(1000):
        current["tag"] = str(number)
        route = await rig.publish(stub)
        await client.send(get(route, stub.port))
        assert (await client.response()).body == current["tag"].encode()
        if number % 2:
            await rig.catalog.withdraw(route.sandbox_id, "killed")
    assert served == [str(number) for number in range(1000)]


async def test_a_new_machine_cuts_the_old_one(rig: Rig) -> None:
    """A sandbox that comes back on another machine, without a withdrawal between, is reached there."""
    old, route = await rig.sandbox(stream)
    new = await rig.stub(say_ok, port=old.port)
    client = await rig.client()
    await client.send(get(route, old.port, "/chunked"))
    await client.head()
    await rig.catalog.publish(Route(sandbox_id=route.sandbox_id, machine_id=new_machine_id(), address=new.address))
    with pytest.raises(ConnectionError):
        await client.reader.readuntil(b"never")
    await wait_for(lambda: old.open_count == 0)
    assert (await rig.get(route, new.port)).status == 200


async def test_closing_lets_requests_finish(rig: Rig) -> None:
    """A stopping edge accepts nothing new, finishes what runs, and says that the connection ends."""
    finish = asyncio.Event()

    async def slow(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
        await finish.wait()
        writer.write(b"llo")

    stub, route = await rig.sandbox(slow)
    idle, busy = await rig.client(), await rig.client()
    await busy.send(get(route, stub.port))
    head = await busy.head()
    async with asyncio.TaskGroup() as tasks:
        closing = tasks.create_task(rig.edge.close(grace_s=10))
        assert await idle.is_closed()
        with pytest.raises(OSError, match=r".*"):
            await rig.client()
        finish.set()
        assert await busy.body(head) == b"hello"
        assert await busy.is_closed()
        await closing
