"""What passes through the edge: requests, bodies, streams, upgrades, and the state of connections."""

import asyncio

import pytest
import websockets

from tests.contract.edge.rig import Request, Rig, get, read_body, say_ok
from tests.support.wait import wait_for


async def test_by_host_and_by_headers(rig: Rig) -> None:
    """A sandbox's port is reached by host name, with a port and in any case, and by the two headers."""
    stub, route = await rig.sandbox(say_ok)
    name = f"{stub.port}-{route.sandbox_id}"
    hosts = (
        f"{name}.sandbox.test",
        f"{name}.SANDBOX.Test:3002",
        f"{name}-00000000.sandbox.test",
        f"{name}.eu.sandbox.test.",
    )
    for host in hosts:
        answer = await rig.request(f"GET /x?y=1 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert (answer.status, answer.body) == (200, b"GET /x?y=1 HTTP/1.1 0")
        assert stub.requests[-1].headers["host"] == host
    assert (await rig.get(route, stub.port)).status == 200


async def test_connections_are_kept_on_both_sides(rig: Rig) -> None:
    """A hundred requests on one connection need one connection into the sandbox."""
    stub, route = await rig.sandbox(say_ok)
    client = await rig.client()
    for number in range(100):
        await client.send(get(route, stub.port, f"/{number}"))
        assert (await client.response()).body == f"GET /{number} HTTP/1.1 0".encode()
    assert stub.connection_count == 1


async def test_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    """Requests sent ahead wait their turn."""
    stub, route = await rig.sandbox(say_ok)
    client = await rig.client()
    await client.send(b"".join(get(route, stub.port, f"/{number}") for number in range(20)))
    for number in range(20):
        assert (await client.response()).body.startswith(f"GET /{number} ".encode())


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_upload(rig: Rig, is_chunked: bool) -> None:
    """A body reaches the sandbox whole, framed anew, and the connection serves the next request."""
    stub, route = await rig.sandbox(say_ok)
    body = bytes(range(256)) * 4000
    client = await rig.client()
    for _ in range(2):
        if is_chunked:
            await client.send(get(route, stub.port, method="POST", extra="Transfer-Encoding: chunked\r\n"))
            for at in range(0, len(body), 70_001):
                piece = body[at : at + 70_001]
                await client.send(b"%X;name=value\r\n%s\r\n" % (len(piece), piece))
            await client.send(b"0\r\nTrailer: dropped\r\n\r\n")
        else:
            await client.send(get(route, stub.port, method="POST", extra=f"Content-Length: {len(body)}\r\n") + body)
        assert (await client.response()).body == b"POST / HTTP/1.1 %d" % len(body)
    assert stub.connection_count == 1


async def test_response_framings(rig: Rig) -> None:
    """Length, chunks and end by closing all arrive whole; HEAD, 204 and 304 carry no body."""

    async def answer(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match request.path:
            case "/length":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            case "/chunks":
                writer.write(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x\r\nllo\r\n0\r\nT: v\r\n\r\n"
                )
            case "/close":
                writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
                writer.close()
            case "/204":
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            case "/304":
                writer.write(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n")

    stub, route = await rig.sandbox(answer)
    client = await rig.client()
    for path in ("/length", "/chunks", "/close"):
        await client.send(get(route, stub.port, path))
        assert (await client.response()).body == b"hello", path
    await client.send(get(route, stub.port, "/length", method="HEAD"))
    # The stub wrongly sends a body to HEAD; it must not be taken for the next answer.
    assert (await client.response(of_head=True)).headers["content-length"] == "5"
    for path, status in (("/204", 204), ("/304", 304), ("/chunks", 200)):
        await client.send(get(route, stub.port, path))
        assert (await client.response()).status == status
    old = await rig.client()
    await old.send(get(route, stub.port, "/chunks").replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (await old.reader.read()).endswith(b"\r\n\r\nhello")


async def test_bodies_stream_both_ways_at_once(rig: Rig) -> None:
    """Each piece arrives before the next is sent: nothing is held back, in either direction."""

    async def echo(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while size := int(await reader.readuntil(b"\r\n"), 16):
            data = await reader.readexactly(size + 2)
            writer.write(b"%x\r\n%s" % (size, data))
        await reader.readexactly(2)
        writer.write(b"0\r\n\r\n")

    stub, route = await rig.sandbox(echo)
    client = await rig.client()
    await client.send(get(route, stub.port, method="POST", extra="Transfer-Encoding: chunked\r\n"))
    assert (await client.head()).status == 200
    for number in range(50):
        piece = b"piece %d" % number
        await client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        assert int(await client.reader.readuntil(b"\r\n"), 16) == len(piece)
        assert await client.reader.readexactly(len(piece) + 2) == piece + b"\r\n"
    await client.send(b"0\r\n\r\n")
    assert await client.reader.readexactly(5) == b"0\r\n\r\n"
    # And the connection goes on.
    await client.send(get(route, stub.port, method="POST", extra="Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n")
    assert (await client.response()).body == b""


async def test_expect_continue(rig: Rig) -> None:
    """The sandbox's own '100 Continue' reaches the client before the body is sent."""

    async def careful(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.path == "/no":
            writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await say_ok(request, reader, writer)

    stub, route = await rig.sandbox(careful)
    extra = "Content-Length: 3\r\nExpect: 100-continue\r\n"
    client = await rig.client()
    await client.send(get(route, stub.port, method="POST", extra=extra))
    assert (await client.head()).status == 100
    await client.send(b"abc")
    assert (await client.response()).body == b"POST / HTTP/1.1 3"
    await client.send(get(route, stub.port, "/no", method="POST", extra=extra))
    assert (await client.response()).status == 413
    assert await client.is_closed()


async def test_early_answer(rig: Rig) -> None:
    """An answer that comes before the upload ends reaches the client, though the server reads no further."""

    async def refuse(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        writer.close()

    stub, route = await rig.sandbox(refuse)
    client = await rig.client()
    client.writer.write(get(route, stub.port, method="POST", extra="Content-Length: 50000000\r\n") + bytes(5_000_000))
    answer = await client.response()
    assert (answer.status, answer.body) == (413, b"no")
    assert await client.is_closed()


async def test_websocket(rig: Rig) -> None:
    """WebSockets pass, text and 1 MB of bytes, and close with their own code."""

    async def echo(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    address = "127.77.1.9"
    async with websockets.serve(echo, address, 0, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        stub = await rig.stub(say_ok, address=address)
        route = await rig.publish(stub)
        uri = f"ws://{port}-{route.sandbox_id}.sandbox.test/path"
        async with websockets.connect(uri, host="127.0.0.1", port=rig.port, max_size=None, proxy=None) as client:
            for message in ("hello", bytes(1_000_000), "bye"):
                await client.send(message)
                assert await client.recv() == message
            await client.close(4001, "enough")
            assert client.close_code == 4001


async def test_upgrade_carries_raw_bytes(rig: Rig) -> None:
    """After 101 both sides may say anything; the end of one ends the other."""

    async def upgrade(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert request.headers["connection"].lower() == "upgrade"
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\nfirst")
        writer.write((await reader.readexactly(4))[::-1])
        await writer.drain()
        writer.close()

    stub, route = await rig.sandbox(upgrade)
    client = await rig.client()
    await client.send(get(route, stub.port, extra="Connection: Upgrade\r\nUpgrade: raw\r\n") + b"\x00\r\n\xff")
    head = await client.head()
    assert (head.status, head.headers["upgrade"]) == (101, "raw")
    assert await client.reader.read() == b"first\xff\n\r\x00"


async def test_client_that_leaves_ends_the_upstream_connection(rig: Rig) -> None:
    """A client that disconnects during a stream costs the sandbox nothing more."""

    async def forever(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await reader.read()

    stub, route = await rig.sandbox(forever)
    client = await rig.client()
    await client.send(get(route, stub.port))
    assert (await client.head()).status == 200
    client.close()
    await wait_for(lambda: stub.open_count == 0)


async def test_request_is_repeated_on_a_dead_connection(rig: Rig) -> None:
    """A GET that meets a connection which the server just closed is sent again; a POST never is."""

    async def once(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.path == "/die":
            raise ConnectionError
        await say_ok(request, reader, writer)

    answers = {"count": 0}

    async def dies_on_second(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers["count"] += 1
        if answers["count"] == 2:
            raise ConnectionError
        await say_ok(request, reader, writer)

    stub, route = await rig.sandbox(dies_on_second)
    assert (await rig.get(route, stub.port)).status == 200
    assert (await rig.get(route, stub.port)).status == 200
    assert len(stub.requests) == 3
    stub, route = await rig.sandbox(once)
    assert (await rig.get(route, stub.port)).status == 200
    answer = await rig.request(get(route, stub.port, "/die", method="POST", extra="Content-Length: 0\r\n"))
    assert answer.status == 502
    assert len(stub.requests) == 2


async def test_truncated_answers_look_truncated(rig: Rig) -> None:
    """A server that dies in the middle of its answer is never mistaken for one that finished."""

    async def die(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.path == "/length":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        writer.close()

    stub, route = await rig.sandbox(die)
    for path in ("/length", "/chunks"):
        client = await rig.client()
        await client.send(get(route, stub.port, path))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.response()


async def test_hop_by_hop_headers_stay_on_their_hop(rig: Rig) -> None:
    """Connection's own headers, ours and a stranger's X-Firebrick-* do not pass; the rest passes unchanged."""

    async def answer(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_body(request, reader)
        writer.write(
            b"HTTP/1.1 200 Fine\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\n"
            b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n"
        )

    stub, route = await rig.sandbox(answer)
    client = await rig.client()
    extra = (
        "Connection: keep-alive, X-Secret, Host, E2b-Sandbox-Id\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n"
        "X-Firebrick-Control: 1\r\nx-firebrick-other: 1\r\nX-Access-Token: t\r\nUpgrade: h2c\r\n"
        "HTTP2-Settings: x\r\n"
    )
    await client.send(get(route, stub.port, extra=extra))
    raw = (await client.reader.readuntil(b"\r\n\r\n")).decode()
    assert raw.count("Set-Cookie") == 2
    assert "X-Hop" not in raw
    assert "Keep-Alive" not in raw
    seen = stub.requests[0].headers
    assert seen["x-access-token"] == "t"
    assert seen["host"] == "127.0.0.1"
    assert not seen.keys() & {
        "connection", "x-secret", "keep-alive", "te", "x-firebrick-control", "x-firebrick-other", "upgrade",
        "http2-settings",
    }  # fmt: skip
