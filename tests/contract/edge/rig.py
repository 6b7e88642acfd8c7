"""An edge, stub servers in the place of sandboxes, and a client that writes its own bytes."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from firebrick.catalog.base import Route
from firebrick.catalog.memory import MemoryCatalog
from firebrick.clock import SystemClock
from firebrick.edge.server import Edge
from firebrick.edge.visit import EdgeLimits
from firebrick.model.ids import new_machine_id, new_sandbox_id
from tests.support.wait import wait_for

DOMAIN = "sandbox.test:3002"
Handler = Callable[["Request", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """What a stub server read of one request's head."""

    line: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]


@dataclass
class Stub:
    """A server that keeps connections open, counts what it sees and answers by `handler`."""

    handler: Handler
    address: str
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    connection_count: int = 0
    open_count: int = 0
    server: asyncio.Server | None = None
    tag: str = ""

    async def start(self, port: int = 0) -> "Stub":
        self.server = await asyncio.start_server(self._serve, self.address, port, limit=2**20)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        self.open_count += 1
        try:
            while True:
                raw = await reader.readuntil(b"\r\n\r\n")
                lines = raw.decode("latin-1").split("\r\n")
                headers = {}
                for line in lines[1:]:
                    if line:
                        name, _, value = line.partition(":")
                        headers[name.lower()] = value.strip()
                request = Request(lines[0], headers)
                self.requests.append(request)
                await self.handler(request, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open_count -= 1
            writer.close()

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One raw connection to the edge."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Response:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines[1:] if line}
        return Response(int(lines[0].split(" ")[1]), headers, b"")

    async def response(self, *, of_head: bool = False) -> Response:
        """A whole response, framed as its head says."""
        head = await self.head()
        if of_head or head.status in (204, 304) or head.status < 200:
            return head
        return Response(head.status, head.headers, await self.body(head))

    async def body(self, head: Response) -> bytes:
        if head.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                parts.append(await self.reader.readexactly(size))
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
            return b"".join(parts)
        if "content-length" in head.headers:
            return await self.reader.readexactly(int(head.headers["content-length"]))
        return await self.reader.read()

    async def is_closed(self) -> bool:
        """Read to the end; True when the edge ended the connection with nothing more to say."""
        try:
            async with asyncio.timeout(10):
                return await self.reader.read() == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


class Rig:
    """What a test works with."""

    def __init__(self, edge: Edge, catalog: MemoryCatalog, port: int) -> None:
        self.edge = edge
        self.catalog = catalog
        self.port = port
        self.stubs: list[Stub] = []
        self.clients: list[Client] = []

    async def stub(self, handler: Handler, *, port: int = 0, address: str | None = None) -> Stub:
        where = address or f"127.{random.randint(2, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"
        stub = await Stub(handler, where).start(port)
        self.stubs.append(stub)
        return stub

    async def publish(self, stub: Stub, *, token: str = "") -> Route:
        route = Route(
            sandbox_id=new_sandbox_id(), machine_id=new_machine_id(), address=stub.address, access_token=token
        )
        await self.catalog.publish(route)
        return route

    async def sandbox(self, handler: Handler, *, port: int = 0) -> tuple[Stub, Route]:
        stub = await self.stub(handler, port=port)
        return stub, await self.publish(stub)

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**20))
        self.clients.append(client)
        return client

    async def request(self, raw: bytes) -> Response:
        client = await self.client()
        await client.send(raw)
        return await client.response()

    async def get(self, route: Route, port: int, path: str = "/", *, extra: str = "") -> Response:
        return await self.request(get(route, port, path, extra=extra))

    async def close(self) -> None:
        for client in self.clients:
            client.close()
        await wait_for(lambda: not self.edge.stats.exchange_count, status=lambda: self.edge.stats)
        await self.edge.close(grace_s=1)
        assert self.edge.stats.connection_count == 0
        for stub in self.stubs:
            await wait_for(lambda stub=stub: stub.open_count == 0, status=lambda stub=stub: stub)
            await stub.close()


def get(route: Route, port: int, path: str = "/", *, method: str = "GET", extra: str = "") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nE2b-Sandbox-Id: {route.sandbox_id}\r\n"
        f"E2b-Sandbox-Port: {port}\r\n{extra}\r\n"
    ).encode()


@asynccontextmanager
async def open_rig(limits: EdgeLimits | None = None, *, api: tuple[str, int] | None = None) -> AsyncIterator[Rig]:
    catalog = MemoryCatalog()
    edge = Edge(domain=DOMAIN, catalog=catalog, clock=SystemClock(), limits=limits, api=api)
    rig = Rig(edge, catalog, await edge.serve("127.0.0.1", 0))
    try:
        yield rig
    finally:
        await rig.close()


async def say_ok(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read the body, if any; answer with the request's line and how many body bytes came."""
    count = len(await read_body(request, reader))
    body = f"{request.line} {count}".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def read_body(request: Request, reader: asyncio.StreamReader) -> bytes:
    if request.headers.get("transfer-encoding") == "chunked":
        parts = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readexactly(2)
        return b"".join(parts)
    return await reader.readexactly(int(request.headers.get("content-length", "0")))
