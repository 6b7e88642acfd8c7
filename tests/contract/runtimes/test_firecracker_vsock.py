"""The line to a port inside a microVM, against a monitor on a unix socket that keeps to Firecracker's protocol, or
does worse."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from firebrick.runtimes.firecracker.jail_socket import socket_path
from firebrick.runtimes.firecracker.vsock import dial
from tests.support.wait import wait_for

Reply = Callable[[bytes], bytes]


@asynccontextmanager
async def monitor(place: Path, reply: Reply, *, stays: bool = True) -> AsyncIterator[list[bytes]]:
    """Answers the first line of each connection; then what comes is sent back, or the connection ends."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(reply(asked[-1]))
        while stays and (data := await reader.read(1000)):
            writer.write(data)
        writer.close()

    server = await asyncio.start_unix_server(serve, place)
    try:
        yield asked
    finally:
        server.close()
        await server.wait_closed()


def accepts(line: bytes) -> bytes:
    return b"OK 1073741824\n"


async def test_a_line_is_asked_for_and_carries_bytes(tmp_path: Path) -> None:
    """The port is named, and what is said afterwards is the guest's."""
    async with monitor(tmp_path / "vsock.sock", accepts) as asked:
        stream = await dial(tmp_path / "vsock.sock", 49983)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(stream, b"hello")
        assert await loop.sock_recv(stream, 100) == b"hello"
        stream.close()
    assert asked == [b"CONNECT 49983\n"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", ConnectionRefusedError),
        (b"OK ", ConnectionRefusedError),
        (b"OK 1\nHTTP/1.1 200 OK\n", ConnectionAbortedError),
        (b"NO\n", ConnectionAbortedError),
        (b"OK " + b"1" * 11 + b"\n", ConnectionAbortedError),
        (b"x" * 100_000, ConnectionAbortedError),
    ],
    ids=["nobody-listens", "cut", "more", "no", "long-number", "flood"],
)
async def test_what_makes_no_sense_is_refused(tmp_path: Path, answer: bytes, why: type[OSError]) -> None:
    """As errors of the network, which whoever asked takes for a guest that does not answer."""
    async with monitor(tmp_path / "vsock.sock", lambda line: answer, stays=False):
        with pytest.raises(why):
            await dial(tmp_path / "vsock.sock", 1)


async def test_a_silent_monitor_holds_nobody(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with monitor(tmp_path / "vsock.sock", lambda line: b"OK"):
        with pytest.raises(TimeoutError):
            await dial(tmp_path / "vsock.sock", 1, timeout_s=0.05)
    await wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_a_machine_without_a_line_is_told(tmp_path: Path) -> None:
    """An earlier version started it: whoever asks goes another way."""
    with pytest.raises(FileNotFoundError):
        await dial(tmp_path / "vsock.sock", 1)


@pytest.mark.parametrize("trap", ["link", "file", "fifo"])
async def test_nobody_is_led_out_of_the_jail(tmp_path: Path, trap: str) -> None:
    """Whoever broke out of a guest may put a link to another socket of the host's there, or anything else: it is not
    followed, and nothing is said to whoever listens at its end."""
    place = tmp_path / "vsock.sock"
    async with monitor(tmp_path / "other.sock", accepts) as asked:
        match trap:
            case "link":
                place.symlink_to(tmp_path / "other.sock")
            case "file":
                place.touch()
            case _:
                os.mkfifo(place)
        with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's to say
            await dial(place, 1)
        with pytest.raises(OSError), socket_path(place):  # noqa: PT011
            pass
    assert asked == []


async def test_a_socket_may_lie_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deeper than the name of a unix socket may be long."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    async with monitor(Path("vsock.sock"), accepts):
        (await dial(deep / "vsock.sock", 1)).close()
