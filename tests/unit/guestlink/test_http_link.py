"""The guest link over TCP, against guests that behave, stall and lie."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.guestlink.base import GuestInit, GuestSilent
from firebrick.guestlink.http import HttpGuestLink, decode_logs, encode_init
from firebrick.guestlink.http_answer import MAX_BODY_BYTES
from firebrick.model.ids import SandboxId, TemplateId
from tests.support.wait import wait_for

SETTINGS = GuestInit(
    sandbox_id=SandboxId("i1"),
    template_id=TemplateId("base"),
    timestamp=datetime(2026, 1, 2, tzinfo=UTC),
    hostname="sandbox",
    env={"A": "b"},
    access_token="secret",
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Guest:
    """A server that answers every request with `reply(request)`; None closes the connection."""

    def __init__(self, reply: Callable[[bytes], bytes | None]) -> None:
        self.reply = reply
        self.requests: list[bytes] = []
        self.connection_count = 0
        self.serving: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        self.serving.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
                body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
                self.requests.append(head + body)
                answer = self.reply(head + body)
                if answer is None:
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def guest(reply: Callable[[bytes], bytes | None]) -> AsyncIterator[tuple[Guest, HttpGuestLink]]:
    served = Guest(reply)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    link = HttpGuestLink("127.0.0.1", "t0ken", port=server.sockets[0].getsockname()[1])
    async with server:
        try:
            yield served, link
        finally:
            link.close()
            await wait_for(lambda: all(task is None or task.done() for task in served.serving))


async def test_ready_then_init_is_one_connection_with_the_token() -> None:
    """The create path opens one connection and sends the control token with every request."""
    async with guest(lambda request: OK) as (served, link):
        await link.wait_ready(timeout_s=5)
        await link.init(SETTINGS)
    assert served.connection_count == 1
    assert all(b"X-Firebrick-Control: t0ken" in request for request in served.requests)
    body = json.loads(served.requests[1].partition(b"\r\n\r\n")[2])
    assert body["envVars"] == {"A": "b"}
    assert body["accessToken"] == "secret"
    assert "open" not in body


async def test_a_line_of_the_runtimes_is_taken_before_the_address() -> None:
    """And once it broke, as it does when a machine goes on from saved memory, it is dialled anew."""
    answers = iter([OK, None, OK])
    served = Guest(lambda request: next(answers))
    ways: list[socket.socket] = []

    async def dial() -> socket.socket:
        near, far = socket.socketpair()
        near.setblocking(False)
        ways.append(near)
        serving.create_task(served.serve(*await asyncio.open_connection(sock=far)))
        return near

    async with asyncio.TaskGroup() as serving:
        link = HttpGuestLink("127.0.0.1", "t0ken", port=1, dial=dial)
        await link.init(SETTINGS)
        await link.init(SETTINGS)
        link.close()
    assert (len(ways), len(served.requests)) == (2, 3)


async def test_a_machine_without_a_line_is_asked_at_its_address() -> None:
    """An earlier version of ours started it. A line that answers nothing is none of that."""

    async def absent() -> socket.socket:
        raise FileNotFoundError

    async def refused() -> socket.socket:
        raise ConnectionRefusedError

    async with guest(lambda request: OK) as (served, link):
        port = link._port
        other = HttpGuestLink("127.0.0.1", "t0ken", port=port, dial=absent)
        await other.init(SETTINGS)
        other.close()
        with pytest.raises(GuestSilent, match="could not be reached"):
            await HttpGuestLink("127.0.0.1", "t0ken", port=port, dial=refused).init(SETTINGS)
    assert len(served.requests) == 1


def test_a_sandbox_without_a_token_is_opened_explicitly() -> None:
    """Leaving the token out alone would keep an older one."""
    body = json.loads(encode_init(GuestInit(**{**fields_of(SETTINGS), "access_token": ""})))
    assert body["open"] is True
    assert "accessToken" not in body


def fields_of(settings: GuestInit) -> dict[str, object]:
    return {name: getattr(settings, name) for name in GuestInit.__slots__}


async def test_ready_waits_for_a_guest_that_comes_up_late() -> None:
    """Refused connections and 503 before it is up are not the end."""
    answers = iter([None, b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"])
    async with guest(lambda request: next(answers)) as (served, link):
        await link.wait_ready(timeout_s=5)
    assert len(served.requests) == 3


async def test_a_guest_that_never_comes_up_is_given_up() -> None:
    """After the deadline, with what was met last in the detail."""
    link = HttpGuestLink("127.0.0.1", "t0ken", port=1)
    with pytest.raises(GuestSilent, match=r"0\.05 s") as caught:
        await link.wait_ready(timeout_s=0.05)
    assert "127.0.0.1" in caught.value.detail


async def test_a_kept_connection_that_died_is_replaced() -> None:
    """A warm machine's connection may be minutes old."""
    replies = iter([OK, None, OK])
    async with guest(lambda request: next(replies)) as (served, link):
        await link.wait_ready(timeout_s=5)
        await link.init(SETTINGS)
    assert served.connection_count == 2


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode(),
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
        b"HTTP/1.1 500 Broken\r\nContent-Length: 4\r\n\r\noops",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\noops",
        b'HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\n{"entries": "no", "next": true} ',
    ],
)
async def test_a_guest_that_lies_is_one_clear_error(answer: bytes | None) -> None:
    """Never a hang, never another exception."""
    async with guest(lambda request: answer) as (_, link):
        with pytest.raises(GuestSilent):
            await link.logs(0, timeout_s=5)


async def test_a_guest_that_stalls_is_cut_off() -> None:
    """Half an answer holds nobody longer than the deadline."""
    async with guest(lambda request: b"HTTP/1.1 200 OK\r\nContent-Le") as (served, link):
        with pytest.raises(GuestSilent, match="within"):
            await link.logs(0, timeout_s=0.05)
        await wait_for(lambda: served.requests)


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["entries", "next", "seq", "timestampUs", "message", "level", "fields"]), inner, max_size=7
    ),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_log_answer_is_read_or_refused(body: bytes) -> None:
    """Whatever the bytes are, the outcome is entries or GuestSilent."""
    try:
        entries, following = decode_logs(body, 5)
    except GuestSilent:
        return
    assert following >= 5
    assert all(len(entry.message) <= 4096 for entry in entries)
