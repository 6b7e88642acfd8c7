"""What the edge answers itself, and what it never lets through."""

import asyncio
import json
import socket as sockets
from typing import Any
from urllib.parse import urlencode

import pytest
from e2b.sandbox.signature import get_signature

from firebrick.catalog.base import Route
from firebrick.edge.visit import EdgeLimits
from firebrick.guestlink.base import AGENT_PORT
from firebrick.model.ids import new_machine_id, new_sandbox_id
from tests.contract.edge.rig import Request, Rig, Stub, get, open_rig, say_ok
from tests.support.wait import wait_for


def nowhere(address: str = "127.0.0.1") -> Route:
    return Route(sandbox_id=new_sandbox_id(), machine_id=new_machine_id(), address=address)


async def test_dead_sandboxes(rig: Rig) -> None:
    """502 'was not found' for an unknown sandbox, with the reason when there is one; JSON, unless a browser asks."""
    route = nowhere()
    unknown = await rig.get(route, 3000, "/health")
    assert (unknown.status, unknown.json()) == (
        502, {"code": 502, "message": "The sandbox was not found", "sandboxId": route.sandbox_id},
    )  # fmt: skip
    assert unknown.headers["content-type"] == "application/json; charset=utf-8"
    assert unknown.headers["access-control-allow-origin"] == "*"
    assert unknown.headers["should-retry"] == "false"
    await rig.catalog.withdraw(route.sandbox_id, "timeout")
    expired = await rig.get(route, 3000)
    assert expired.json()["message"] == "The sandbox was not found: it reached its timeout"
    page = await rig.get(route, 3000, extra="Accept: text/html,*/*\r\n")
    assert page.headers["content-type"].startswith("text/html")
    assert b"Sandbox Not Found" in page.body
    assert route.sandbox_id.encode() in page.body
    head = await rig.client()
    await head.send(get(route, 3000, method="HEAD") * 2)
    for _ in range(2):
        assert (await head.response(of_head=True)).status == 502


async def test_closed_port(rig: Rig) -> None:
    """502 'port is not open' where nothing listens."""
    stub, route = await rig.sandbox(say_ok)
    with sockets.create_server((stub.address, 0)) as probe:
        port = probe.getsockname()[1]
    answer = await rig.get(route, port)
    assert answer.status == 502
    assert answer.json() == {
        "code": 502,
        "message": "The sandbox is running but port is not open",
        "sandboxId": route.sandbox_id,
        "port": port,
    }
    page = await rig.get(route, port, extra="Accept: text/html\r\n")
    assert f"no service running on port {port}".encode() in page.body


async def test_an_upload_to_a_dead_sandbox_is_answered(rig: Rig) -> None:
    """The answer to a large upload is not lost in a reset; a small one leaves the connection usable."""
    route = nowhere()
    client = await rig.client()
    await client.send(get(route, 1, method="POST", extra="Content-Length: 3\r\n") + b"abc")
    assert (await client.response()).status == 502
    client.writer.write(get(route, 1, method="POST", extra="Content-Length: 40000000\r\n") + bytes(4_000_000))
    assert (await client.response()).status == 502
    assert await client.is_closed()


async def test_control_routes_are_reserved(rig: Rig) -> None:
    """The agent's routes for the control plane answer 404 to the public, on the agent's port only."""
    stub = await rig.stub(say_ok, port=AGENT_PORT)
    route = await rig.publish(stub)
    for path in ("/init", "//init", "/x/../%69nit?a=b", "/firebrick/freeze", "/upgrade"):
        answer = await rig.get(route, AGENT_PORT, path)
        assert answer.status == 404
        assert "reserved for the E2B control plane" in answer.json()["message"]
    assert stub.requests == []
    assert (await rig.get(route, AGENT_PORT, "/health")).status == 200
    other, route = await rig.sandbox(say_ok)
    assert (await rig.get(route, other.port, "/init")).status == 200


async def test_signed_urls(rig: Rig) -> None:
    """A signed URL without sandbox id reaches the sandbox whose token signed it; another is 401."""
    stubs = [await rig.stub(say_ok, port=AGENT_PORT) for _ in range(3)]
    for number, stub in enumerate(stubs):
        await rig.publish(stub, token=f"token-{number}")
    made = get_signature("/home/user/a.txt", "read", None, "token-1", -100)
    query = urlencode(
        {"path": "/home/user/a.txt", "signature": made["signature"], "signature_expiration": str(made["expiration"])}
    )
    answer = await rig.request(f"GET /files?{query} HTTP/1.1\r\nHost: 127.0.0.1:3002\r\n\r\n".encode())
    assert answer.status == 200
    assert [len(stub.requests) for stub in stubs] == [0, 1, 0]
    wrong = await rig.request(f"GET /files?{query}x HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (wrong.status, wrong.json()) == (401, {"code": 401, "message": "invalid signature"})


@pytest.mark.parametrize(
    "lines",
    ["Host: localhost", "Host: localhost\r\nE2b-Sandbox-Id: i1", "Host: x.sandbox.test",
     "Host: 3000-i1.sandbox.test\r\nE2b-Sandbox-Id: i2\r\nE2b-Sandbox-Port: 3000",
     "Host: localhost\r\nE2b-Sandbox-Id: i1\r\nE2b-Sandbox-Port: 0"],
)  # fmt: skip
async def test_no_or_two_targets(rig: Rig, lines: str) -> None:
    """A request that names no place, or two, is a 400 in JSON; the connection goes on."""
    client = await rig.client()
    for _ in range(2):
        await client.send(f"GET / HTTP/1.1\r\n{lines}\r\n\r\n".encode())
        answer = await client.response()
        assert (answer.status, answer.json()["code"]) == (400, 400)


async def test_own_pages(rig: Rig) -> None:
    """Health for supervisors, counters for Prometheus; a request that came through a proxy sees no counters."""
    stub, route = await rig.sandbox(say_ok)
    await rig.get(route, stub.port)
    health = await rig.request(b"GET /__firebrick/health HTTP/1.1\r\nHost: 127.0.0.1:3002\r\n\r\n")
    assert health.status == 200
    metrics = await rig.request(b"GET /__firebrick/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"firebrick_edge_forwarded_total 1.0" in metrics.body
    hidden = b"GET /__firebrick/metrics HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    assert (await rig.request(hidden)).status == 403
    assert (await rig.get(route, stub.port, "/__firebrick/health")).body.startswith(b"GET /__firebrick/health")


SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CORPUS = [
    f"Content-Length: {len(SMUGGLED)}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    " Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "Content-Length: 0, 44\r\n\r\n",
    "Content-Length: +0\r\n\r\n",
    "Content-Length: 0x0\r\n\r\n",
    "Host: other\r\n\r\n",
    "X: a\x00b\r\n\r\n",
    "X: a\rY: b\r\n\r\n",
    "\n\n",
]
BAD_CHUNKS = [
    "0\n\n", "0 \r\n\r\n", "+0\r\n\r\n", "0x0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n", "3;a\nb\r\nabc\r\n0\r\n\r\n",
    "0\r\nHost\r\n\r\n", "1\r\nZ\n0\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("attack", CORPUS)
async def test_smuggling_heads(rig: Rig, attack: str) -> None:
    """Ambiguous framing is a 400 and the end of the connection; the sandbox sees nothing of it."""
    stub, route = await rig.sandbox(say_ok)
    client = await rig.client()
    raw = get(route, stub.port, method="POST").removesuffix(b"\r\n") + (attack + SMUGGLED).encode("latin-1")
    await client.send(raw)
    assert (await client.response()).status == 400
    assert await client.is_closed()
    assert stub.requests == []


@pytest.mark.parametrize("attack", BAD_CHUNKS)
async def test_smuggling_chunks(rig: Rig, attack: str) -> None:
    """Malformed chunks end the connection, and the sandbox sees one request at most."""
    stub, route = await rig.sandbox(say_ok)
    client = await rig.client()
    await client.send(
        get(route, stub.port, method="POST", extra="Transfer-Encoding: chunked\r\n") + (attack + SMUGGLED).encode()
    )
    assert (await client.response()).status == 400
    assert await client.is_closed()
    assert [request.path for request in stub.requests] in ([], ["/"])


async def test_a_guest_cannot_answer_the_next_request(rig: Rig) -> None:
    """What a guest sends beyond its answer reaches no one: not this client, not the next."""
    secret = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstole"

    async def greedy(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + secret)

    bad, bad_route = await rig.sandbox(greedy)
    good, good_route = await rig.sandbox(say_ok)
    client = await rig.client()
    for _ in range(10):
        await client.send(get(bad_route, bad.port))
        assert (await client.response()).body == b"ok"
        await client.send(get(good_route, good.port))
        assert (await client.response()).body == b"GET / HTTP/1.1 0"


@pytest.mark.parametrize("raw", [
    b"nonsense\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 101 Up\r\nUpgrade: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, b"HTTP/1.1 103 Early\r\n\r\n" * 100,
])  # fmt: skip
async def test_guests_that_speak_no_http(rig: Rig, raw: bytes) -> None:
    """A server that answers nonsense, or for ever, costs its own client a 502 and nobody else anything."""

    async def nonsense(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()
        await reader.read()

    stub, route = await rig.sandbox(nonsense)
    client = await rig.client()
    await client.send(get(route, stub.port))
    answer = await client.response()
    while answer.status == 103:
        answer = await client.response()
    assert (answer.status, answer.json()["port"]) == (502, stub.port)


async def test_too_long_heads(rig: Rig) -> None:
    """431 above 64 KiB, in one piece or in many; just below it passes."""
    stub, route = await rig.sandbox(say_ok)
    assert (await rig.get(route, stub.port, extra=f"X: {'x' * 60_000}\r\n")).status == 200
    client = await rig.client()
    await client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
    for _ in range(70):
        await client.send(b"x" * 1000)
    assert (await client.response()).status == 431
    assert await client.is_closed()


async def test_slow_heads_and_idle_connections() -> None:
    """A head that dribbles in is cut with 408, an idle connection is closed; a slow body is not."""
    stub_body: dict[str, Any] = {}

    async def keep(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stub_body["got"] = await reader.readexactly(2)
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with open_rig(EdgeLimits(head_timeout_s=0.3, idle_timeout_s=0.3)) as rig:
        stub, route = await rig.sandbox(keep)
        slow_body, slow_head, idle = [await rig.client() for _ in range(3)]
        await slow_body.send(get(route, stub.port, method="POST", extra="Content-Length: 2\r\n") + b"a")
        await slow_head.send(b"GET / HTTP/1.1\r\nHost: loc")
        assert (await slow_head.response()).status == 408
        assert await idle.is_closed()
        await slow_body.send(b"b")
        assert (await slow_body.response()).status == 204
        assert stub_body["got"] == b"ab"


async def test_caps() -> None:
    """One sandbox's crowd gets 429 and does not disturb the next sandbox; the edge's own cap is 503."""
    hold = asyncio.Event()

    async def wait(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold.wait()
        await say_ok(request, reader, writer)

    async with open_rig(EdgeLimits(per_sandbox_count=3, total_count=6)) as rig:
        stub, route = await rig.sandbox(wait)
        other, other_route = await rig.sandbox(say_ok)
        held = [await rig.client() for _ in range(3)]
        for client in held:
            await client.send(get(route, stub.port))
        await wait_for(lambda: rig.edge.stats.exchange_count == 3)
        crowd = await rig.client()
        await crowd.send(get(route, stub.port))
        answer = await crowd.response()
        assert (answer.status, answer.json()["sandboxId"]) == (429, route.sandbox_id)
        await crowd.send(get(other_route, other.port))
        assert (await crowd.response()).status == 200
        third, third_route = await rig.sandbox(wait)
        others = [await rig.client() for _ in range(3)]
        for client in others:
            await client.send(get(third_route, third.port))
        # The crowd's own connection waits for a request and has made room for the last of them.
        await wait_for(lambda: rig.edge.stats.exchange_count == 6)
        assert await crowd.is_closed()
        refused = await (await rig.client()).response()
        assert (refused.status, json.loads(refused.body)["code"]) == (503, 503)
        hold.set()
        for client in (*held, *others):
            assert (await client.response()).status == 200


async def test_silent_connections_shut_nobody_out() -> None:
    """Who has waited longest without a request is closed for who comes; its newer neighbours stay."""
    async with open_rig(EdgeLimits(total_count=4)) as rig:
        stub, route = await rig.sandbox(say_ok)
        silent = [await rig.client() for _ in range(4)]
        await wait_for(lambda: rig.edge.stats.connection_count == 4)
        comer = await rig.client()
        await comer.send(get(route, stub.port))
        assert (await comer.response()).status == 200
        assert await silent[0].is_closed()
        await silent[-1].send(get(route, stub.port))
        assert (await silent[-1].response()).status == 200


async def test_connect_failures(rig: Rig, stub_that_never_accepts: Stub) -> None:
    """An address that swallows connections is a 504, not a hang and not 'not found'."""
    stub = stub_that_never_accepts
    route = nowhere(stub.address)
    await rig.catalog.publish(route)
    answer = await rig.get(route, stub.port)
    assert (answer.status, answer.json()["sandboxId"]) == (504, route.sandbox_id)


@pytest.fixture
def stub_that_never_accepts() -> Any:
    """A listener whose queue is full: the kernel drops further SYNs."""
    with sockets.socket() as listener:
        listener.bind(("127.9.9.9", 0))
        listener.listen(0)
        fillers = []
        for _ in range(3):
            filler = sockets.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        yield Stub(say_ok, *listener.getsockname())
        for filler in fillers:
            filler.close()
