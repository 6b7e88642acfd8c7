"""HTTP/2 over TLS: the same promises as over HTTP/1.1, and the limits that HTTP/2 needs."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes

from firebrick.catalog.base import Route
from firebrick.edge.h2_link import BUDGET_COUNT
from firebrick.edge.link import HEAD_LIMIT_BYTES
from firebrick.edge.tls import server_context
from tests.contract.edge.rig import Request, Rig, Stub, read_body, say_ok
from tests.contract.edge.test_withdrawal import stream
from tests.support.certificates import self_signed
from tests.support.wait import wait_for


@pytest.fixture
async def tls_port(rig: Rig, tmp_path: Path) -> int:
    certificate, key = self_signed(tmp_path)
    return await rig.edge.serve_tls("127.0.0.1", 0, server_context(certificate, key))


@pytest.fixture
async def web(tls_port: int) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(
        http2=True, verify=False, base_url=f"https://127.0.0.1:{tls_port}", limits=limits, timeout=30, trust_env=False
    ) as client:
        yield client


def headers(route: Route, stub: Stub) -> dict[str, str]:
    return {"E2b-Sandbox-Id": route.sandbox_id, "E2b-Sandbox-Port": str(stub.port)}


async def test_both_versions_are_spoken_in_tls(rig: Rig, tls_port: int) -> None:
    """By ALPN; a host name finds the sandbox in either."""
    stub, route = await rig.sandbox(say_ok)
    for http2, version in ((True, "HTTP/2"), (False, "HTTP/1.1")):
        async with httpx.AsyncClient(http2=http2, verify=False, trust_env=False) as client:
            answer = await client.get(
                f"https://127.0.0.1:{tls_port}/x", headers={"Host": f"{stub.port}-{route.sandbox_id}.sandbox.test:3002"}
            )
            assert (answer.http_version, answer.text) == (version, "GET /x HTTP/1.1 0")
    assert stub.requests[0].headers["host"] == f"{stub.port}-{route.sandbox_id}.sandbox.test:3002"


async def test_bodies_both_ways(rig: Rig, web: httpx.AsyncClient) -> None:
    """With a length and without one, above every window, and the connection goes on."""

    async def echo(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await read_body(request, reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()

    stub, route = await rig.sandbox(echo)
    body = bytes(range(256)) * 12_000

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 100_001):
            yield body[at : at + 100_001]

    for content in (body, pieces(), b"", body):
        answer = await web.post("/", content=content, headers=headers(route, stub))
        assert answer.content == (b"" if content == b"" else body)
        assert answer.http_version == "HTTP/2"
    assert (await web.head("/", headers=headers(route, stub))).content == b""
    assert stub.requests[1].headers["transfer-encoding"] == "chunked"


async def test_small_output_is_batched(rig: Rig, web: httpx.AsyncClient) -> None:
    """60,000 lines of eight bytes, each written alone, arrive whole in far fewer DATA frames, and the first at once."""
    go = asyncio.Event()

    async def lines(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n0000000\n\r\n")
        await go.wait()
        for number in range(1, 60_000):
            writer.write(b"8\r\n%07d\n\r\n" % number)
            if number % 10 == 0:
                await writer.drain()
                await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    stub, route = await rig.sandbox(lines)
    pieces: list[bytes] = []
    async with web.stream("GET", "/", headers=headers(route, stub)) as answer:
        async for piece in answer.aiter_raw():
            pieces.append(piece)
            go.set()
    assert pieces[0] == b"0000000\n"
    assert b"".join(pieces) == b"".join(b"%07d\n" % number for number in range(60_000))
    assert len(pieces) < 6_000


async def test_a_slow_reader_holds_its_own_sandbox_only(rig: Rig, web: httpx.AsyncClient) -> None:
    """Its stream fills a few buffers and waits; another stream of the same connection goes on."""
    written = 0

    async def flood(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        if request.path == "/small":
            return await say_ok(request, reader, writer)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            writer.write(bytes(100_000))
            await writer.drain()
            written += 100_000

    stub, route = await rig.sandbox(flood)
    async with web.stream("GET", "/", headers=headers(route, stub)):
        assert (await web.get("/small", headers=headers(route, stub))).status_code == 200
        await wait_for(lambda: _is_still(lambda: written))
        assert written < 40_000_000
    # Leaving the block resets the stream: the sandbox's connection goes at once.
    await wait_for(lambda: stub.open_count <= 1, status=lambda: stub)


async def _is_still(value: Callable[[], int]) -> bool:
    before = value()
    for _ in range(20):
        await asyncio.sleep(0)
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    return value() == before and before > 0


@pytest.mark.parametrize("path", ["/chunked", "/length", "/close"])
async def test_a_stream_breaks_when_the_sandbox_is_killed(rig: Rig, web: httpx.AsyncClient, path: str) -> None:
    """That stream alone, and not as if it were complete; the next request on the connection is told why."""
    stub, route = await rig.sandbox(stream)
    async with web.stream("GET", path, headers=headers(route, stub)) as answer:
        parts = answer.aiter_raw()
        assert await anext(parts) == b"hello"
        await rig.catalog.withdraw(route.sandbox_id, "killed")
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(parts)
    gone = await web.get("/", headers=headers(route, stub))
    assert (gone.status_code, gone.json()["message"]) == (502, "The sandbox was not found: it was killed")
    assert gone.headers["should-retry"] == "false"


async def test_an_early_answer_ends_the_upload(rig: Rig, web: httpx.AsyncClient) -> None:
    """An answer that comes before the body has been sent is delivered, and the connection goes on."""

    async def hasty(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        writer.close()

    stub, route = await rig.sandbox(hasty)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield bytes(65_536)

    answer = await web.post("/", content=endless(), headers=headers(route, stub))
    assert (answer.status_code, answer.content) == (413, b"no")
    fine, other = await rig.sandbox(say_ok)
    assert (await web.get("/", headers=headers(other, fine))).status_code == 200


# Below, a client that breaks the rules.


@dataclass
class Raw:
    """A connection on which a test sends what it likes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    h2: H2Connection
    seen: list[events.Event] = field(default_factory=list)

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def until(self, kind: type[events.Event]) -> events.Event:
        async with asyncio.timeout(10):
            while True:
                found = next((event for event in self.seen if isinstance(event, kind)), None)
                if found is not None:
                    self.seen.remove(found)
                    return found
                data = await self.reader.read(65_536)
                if not data:
                    raise ConnectionError(f"closed; seen {self.seen}")
                self.seen += self.h2.receive_data(data)
                self.flush()


@pytest.fixture
async def raw(rig: Rig, tls_port: int) -> AsyncIterator[Raw]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", tls_port, ssl=context)
    config = H2Configuration(
        header_encoding="utf-8",
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=False,
    )
    opened = Raw(reader, writer, H2Connection(config))
    opened.h2.initiate_connection()
    opened.flush()
    yield opened
    writer.close()


def asking(route: Route, stub: Stub, **more: str) -> list[tuple[str, str]]:
    base = {":method": "GET", ":scheme": "https", ":authority": "127.0.0.1", ":path": "/"} | more
    return [*base.items(), ("e2b-sandbox-id", route.sandbox_id), ("e2b-sandbox-port", str(stub.port))]


async def test_five_hundred_streams_at_once(rig: Rig, raw: Raw) -> None:
    """On one connection, all open at the same time, each with its own answer."""
    everyone = asyncio.Event()

    async def wait_for_all(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(stub.requests) == 500:
            everyone.set()
        await everyone.wait()
        await say_ok(request, reader, writer)

    stub, route = await rig.sandbox(wait_for_all)
    for number in range(500):
        raw.h2.send_headers(2 * number + 1, asking(route, stub, **{":path": f"/{number}"}), end_stream=True)
    raw.flush()
    answers: dict[int, bytes] = {}
    for _ in range(500):
        found = await raw.until(events.DataReceived)
        assert isinstance(found, events.DataReceived)
        answers[found.stream_id or 0] = found.data or b""
    assert answers == {2 * number + 1: b"GET /%d HTTP/1.1 0" % number for number in range(500)}


async def test_rapid_resets_end_the_connection(rig: Rig, raw: Raw) -> None:
    """Streams opened and reset without end cost a bounded amount of work."""
    stub, route = await rig.sandbox(stream)
    for number in range(int(BUDGET_COUNT) + 500):
        raw.h2.send_headers(2 * number + 1, asking(route, stub), end_stream=True)
        raw.h2.reset_stream(2 * number + 1)
        if number % 100 == 0:
            raw.flush()
    raw.flush()
    ended = await raw.until(events.ConnectionTerminated)
    assert ended.error_code == ErrorCodes.ENHANCE_YOUR_CALM
    await wait_for(lambda: not rig.edge.stats.exchange_count)


@pytest.mark.parametrize("what", ["ping", "settings"])
async def test_floods_end_the_connection(rig: Rig, raw: Raw, what: str) -> None:
    """Frames that ask for nothing but an answer are not answered for ever."""
    frame = (
        b"\x00\x00\x08\x06\x00\x00\x00\x00\x0001234567" if what == "ping" else b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    )
    raw.writer.write(frame * (int(BUDGET_COUNT) + 500))
    ended = await raw.until(events.ConnectionTerminated)
    assert ended.error_code == ErrorCodes.ENHANCE_YOUR_CALM


async def test_too_long_heads_end_the_connection(rig: Rig, raw: Raw) -> None:
    """Above 64 KiB, however well they are compressed."""
    stub, route = await rig.sandbox(say_ok)
    many = [("x", "y" * 4000)] * (HEAD_LIMIT_BYTES // 4000 + 2)
    raw.h2.send_headers(1, asking(route, stub) + many, end_stream=True)
    raw.flush()
    await raw.until(events.ConnectionTerminated)
    assert not stub.requests


@pytest.mark.parametrize(
    ("pair", "more"),
    [
        (("x-split", "a\r\nX-Injected: b"), {}),
        (("x-nul", "a\0b"), {}),
        (("x y", "a"), {}),
        (("host", "other.test"), {}),
        (("content-length", "5"), {}),
        (("expect", "a-miracle"), {}),
        (("x", "y"), {":path": "/a b"}),
        (("x", "y"), {":path": "/a\r\nX: y"}),
        (("x", "y"), {":method": "GET / HTTP/1.1\r\nX: y\r\n\r\nGET"}),
        (("transfer-encoding", "chunked"), {}),
        (("connection", "x"), {}),
    ],
)
async def test_nothing_is_smuggled_into_http_1(rig: Rig, raw: Raw, pair: tuple[str, str], more: dict[str, str]) -> None:
    """What HTTP/1.1 would read differently is refused before it reaches a sandbox."""
    stub, route = await rig.sandbox(say_ok)
    raw.h2.send_headers(1, [*asking(route, stub, **more), pair], end_stream=True)
    raw.flush()
    try:
        answer = await raw.until(events.ResponseReceived)
    except ConnectionError:
        answer = None
    if answer is not None:
        assert isinstance(answer, events.ResponseReceived)
        assert dict(answer.headers)[":status"][0] == "4"
    assert not stub.requests


async def test_cookies_in_crumbs_are_joined(rig: Rig, raw: Raw) -> None:
    """HTTP/1.1 wants one line."""
    stub, route = await rig.sandbox(say_ok)
    raw.h2.send_headers(1, [*asking(route, stub), ("cookie", "a=1"), ("cookie", "b=2")], end_stream=True)
    raw.flush()
    await raw.until(events.ResponseReceived)
    assert stub.requests[0].headers["cookie"] == "a=1; b=2"


async def test_the_client_goes_and_so_does_its_upstream(rig: Rig, raw: Raw) -> None:
    """A connection that is lost ends every stream's exchange at once."""
    stub, route = await rig.sandbox(stream)
    for number in range(5):
        raw.h2.send_headers(2 * number + 1, asking(route, stub, **{":path": "/chunked"}), end_stream=True)
    raw.flush()
    await wait_for(lambda: stub.open_count == 5)
    raw.writer.transport.abort()
    await wait_for(lambda: stub.open_count == 0)
