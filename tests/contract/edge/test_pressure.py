"""Large bodies, slow readers and crowds: memory stays flat and nobody waits for somebody else."""

import asyncio
import hashlib
import resource
from pathlib import Path

from tests.contract.edge.rig import Client, Request, Rig, get, say_ok
from tests.support.wait import wait_for

MIB = 1024 * 1024
LARGE_BYTES = 200 * MIB
GROWTH_LIMIT_BYTES = 40 * MIB
"""Of this process, which also holds the stub and the client: their buffers included."""


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def give_large(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if request.path == "/length":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE_BYTES)
    else:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    block = bytes(MIB)
    for _ in range(LARGE_BYTES // MIB):
        writer.write(block if request.path == "/length" else b"100000\r\n" + block + b"\r\n")
        await writer.drain()
    if request.path != "/length":
        writer.write(b"0\r\n\r\n")


async def take_large(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    left = int(request.headers["content-length"])
    while left:
        left -= len(await reader.read(min(left, MIB)))
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def read_away(client: Client, count: int) -> int:
    """Read that much; return the largest memory seen."""
    most = 0
    while count:
        count -= len(await client.reader.read(min(count, MIB)))
        most = max(most, memory_bytes())
    return most


async def test_a_large_download_is_not_held_in_memory(rig: Rig) -> None:
    """200 MiB pass with flat memory, with a length and in chunks."""
    stub, route = await rig.sandbox(give_large)
    for path in ("/length", "/chunks"):
        client = await rig.client()
        await client.send(get(route, stub.port, path))
        before = memory_bytes()
        await client.head()
        assert await read_away(client, LARGE_BYTES) < before + GROWTH_LIMIT_BYTES
        client.close()


async def test_a_large_upload_is_not_held_in_memory(rig: Rig) -> None:
    """200 MiB pass the other way with flat memory."""
    stub, route = await rig.sandbox(take_large)
    client = await rig.client()
    before = most = memory_bytes()
    await client.send(get(route, stub.port, method="POST", extra=f"Content-Length: {LARGE_BYTES}\r\n"))
    block = bytes(MIB)
    for _ in range(LARGE_BYTES // MIB):
        await client.send(block)
        most = max(most, memory_bytes())
    assert (await client.response()).status == 200
    assert most < before + GROWTH_LIMIT_BYTES


async def test_a_reader_that_stops_stops_the_sandbox(rig: Rig) -> None:
    """A client that does not read makes the sandbox wait, not the edge swell; others are served meanwhile."""
    sent = {"bytes": 0, "moves": 0}

    async def endless(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.path != "/":
            return await say_ok(request, reader, writer)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE_BYTES)
        for _ in range(LARGE_BYTES // 65536):
            writer.write(bytes(65536))
            await writer.drain()
            sent["bytes"] += 65536

    stub, route = await rig.sandbox(endless)
    client = await rig.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(get(route, stub.port))
    last = {"bytes": -1}

    async def has_stalled() -> bool:
        if sent["bytes"] and sent["bytes"] == last["bytes"]:
            return True
        last["bytes"] = sent["bytes"]
        assert (await rig.get(route, stub.port, "/other")).status == 200
        return False

    await wait_for(has_stalled)
    # Kernel buffers of four sockets, which tune themselves, and a few buffers of ours.
    assert sent["bytes"] < 40 * MIB
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    await client.head()
    await read_away(client, LARGE_BYTES)
    assert sent["bytes"] == LARGE_BYTES


async def test_a_server_that_stops_stops_the_client(rig: Rig) -> None:
    """A server that does not read its upload makes the client wait; the end comes through whole."""
    go_on = asyncio.Event()
    digest = hashlib.sha256()

    async def lazy(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        left = int(request.headers["content-length"])
        while left:
            data = await reader.read(min(left, MIB))
            digest.update(data)
            left -= len(data)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    stub, route = await rig.sandbox(lazy)
    client = await rig.client()
    body = bytes(range(256)) * (64 * MIB // 256)
    before = memory_bytes()
    async with asyncio.TaskGroup() as tasks:
        head = get(route, stub.port, method="POST", extra=f"Content-Length: {len(body)}\r\n")
        await client.send(head)

        async def upload() -> None:
            for at in range(0, len(body), MIB):
                await client.send(body[at : at + MIB])

        sending = tasks.create_task(upload())
        await wait_for(lambda: rig.edge.stats.received_bytes > MIB)
        assert not sending.done()
        assert memory_bytes() < before + GROWTH_LIMIT_BYTES
        go_on.set()
        assert (await client.response()).status == 200
    assert digest.digest() == hashlib.sha256(body).digest()


async def test_five_hundred_streams_at_once(rig: Rig) -> None:
    """Five hundred open streams each get every event, in order, and the edge forgets them all."""
    everyone = asyncio.Event()

    async def events(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await everyone.wait()
        for number in range(10):
            writer.write(b"3\r\n%s%d|\r\n" % (request.path[1:2].encode(), number))
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    stub, route = await rig.sandbox(events)
    clients = [await rig.client() for _ in range(500)]
    for number, client in enumerate(clients):
        await client.send(get(route, stub.port, f"/{number % 10}"))
    await wait_for(lambda: rig.edge.stats.exchange_count == 500)
    everyone.set()
    for number, client in enumerate(clients):
        expected = b"".join(b"%d%d|" % (number % 10, event) for event in range(10))
        assert (await client.response()).body == expected
    assert rig.edge.stats.exchange_count == 0
