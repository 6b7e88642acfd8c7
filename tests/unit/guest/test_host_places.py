"""Who gets a place at the guest agent: everybody up to a number, and the host beside them all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from firebrick_guest import http
from firebrick_guest.http import Connection, Exchange, HttpServer

ASK = b"GET /health HTTP/1.1\r\nHost: guest\r\n\r\n"


@asynccontextmanager
async def server() -> AsyncIterator[tuple[HttpServer, int, int]]:
    """A server, its port for others and its port for the host (in place of a vsock, which not every machine has)."""

    async def answer(exchange: Exchange) -> None:
        exchange.answer(204)

    made = HttpServer(answer, lambda: None)
    port = await made.listen("127.0.0.1", 0)
    line = await made.loop.create_server(lambda: Connection(made, is_host=True), "127.0.0.1", 0)
    try:
        yield made, port, line.sockets[0].getsockname()[1]
    finally:
        line.close()
        await made.close()


async def is_answered(port: int) -> tuple[bool, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(ASK)
        return (await reader.readline()).startswith(b"HTTP/1.1 204"), writer
    except ConnectionError:
        return False, writer


async def test_the_host_is_shut_out_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have taken every place there is; the host has its own, and takes none of theirs."""
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(http, "HOST_CID", "127.0.0.1")
    async with server() as (made, port, line):
        held = [await is_answered(line), await is_answered(port), await is_answered(port)]
        assert [answered for answered, _ in held] == [True, True, True]
        more = [await is_answered(port), await is_answered(line)]
        assert [answered for answered, _ in more] == [False, True]
        assert (made.host_count, len(made.connections)) == (2, 4)
        for _, writer in (*held, *more):
            writer.close()


async def test_nobody_else_is_taken_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else finds the host's way in, from inside the machine or another, is dropped; and so is a host that asks
    for ever more."""
    async with server() as (_, _, line):
        answered, writer = await is_answered(line)
        assert not answered
        writer.close()
        monkeypatch.setattr(http, "HOST_CID", "127.0.0.1")
        monkeypatch.setattr(http, "MAX_HOST_CONNECTIONS", 1)
        first, second = await is_answered(line), await is_answered(line)
        assert (first[0], second[0]) == (True, False)
        for _, writer in (first, second):
            writer.close()
