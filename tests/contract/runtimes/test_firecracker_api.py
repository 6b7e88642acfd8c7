"""The client of a monitor's API, against a server on a unix socket that answers as one, or worse."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from firebrick.runtimes.firecracker.api import ApiFailed, MachineApi
from firebrick.runtimes.firecracker.http_exchange import MAX_BODY_BYTES, MAX_HEAD_BYTES

Asked = list[bytes]


def answer(status: str, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status.encode(), len(body), body)


@asynccontextmanager
async def monitor(socket: Path, reply: Callable[[bytes], bytes]) -> AsyncIterator[Asked]:
    asked: Asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line), 0
        )
        request = head + await reader.readexactly(length)
        asked.append(request)
        writer.write(reply(request))
        writer.close()

    server = await asyncio.start_unix_server(serve, socket)
    try:
        yield asked
    finally:
        server.close()
        await server.wait_closed()


async def test_state_pause_and_resume(tmp_path: Path) -> None:
    """Each is one request with the words of Firecracker's API."""
    state = answer("200 OK", b'{"id":"m1","state":"Running","vmm_version":"1.12.1"}')
    socket = tmp_path / "api.sock"
    async with monitor(socket, lambda asked: state if asked.startswith(b"GET") else answer("204 No Content")) as asked:
        api = MachineApi(socket)
        assert await api.state() == "Running"
        await api.pause()
        await api.resume()
    assert [request.split(b" HTTP")[0] for request in asked] == [b"GET /", b"PATCH /vm", b"PATCH /vm"]
    assert asked[1].endswith(b'{"state":"Paused"}')
    assert asked[2].endswith(b'{"state":"Resumed"}')


async def test_save_load_and_change(tmp_path: Path) -> None:
    """A save of all and one of what changed, a load from a file that is mapped, and a change of a device."""
    socket = tmp_path / "api.sock"
    async with monitor(socket, lambda _: answer("204 No Content")) as asked:
        api = MachineApi(socket)
        await api.save(memory="/save/memory", state="/save/state", timeout_s=5.0)
        await api.save(memory="/save/memory", state="/save/state", timeout_s=5.0, is_diff=True)
        await api.load(memory="/memory", state="/state", resumes=True, tracks=True)
        await api.change("/drives/disk", {"drive_id": "disk"})
    heads = [request.split(b" HTTP")[0] for request in asked]
    assert heads == [b"PUT /snapshot/create"] * 2 + [b"PUT /snapshot/load", b"PATCH /drives/disk"]
    assert [json.loads(request.split(b"\r\n\r\n")[1]) for request in asked] == [
        {"snapshot_type": "Full", "snapshot_path": "/save/state", "mem_file_path": "/save/memory"},
        {"snapshot_type": "Diff", "snapshot_path": "/save/state", "mem_file_path": "/save/memory"},
        {
            "snapshot_path": "/state",
            "mem_backend": {"backend_type": "File", "backend_path": "/memory"},
            "resume_vm": True,
            "enable_diff_snapshots": True,
        },
        {"drive_id": "disk"},
    ]


async def test_a_socket_may_lie_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deeper than the name of a unix socket may be long."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    async with monitor(Path("api.sock"), lambda asked: answer("200 OK", b'{"state":"Paused"}')):
        assert await MachineApi(deep / "api.sock").state() == "Paused"


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (answer("400 Bad Request", b'{"fault_message":"The microVM is not running."}'), "not running"),
        (answer("200 OK", b"<html>"), "no JSON"),
        (answer("200 OK", b"x" * (MAX_BODY_BYTES + 1)), "longer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES, "head is longer"),
        (b"SSH-2.0\r\n", "broke off"),
        (b"SSH-2.0\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "broke off"),
        (b"", "GET /"),
    ],
)
async def test_what_makes_no_sense_is_told(tmp_path: Path, reply: bytes, why: str) -> None:
    async with monitor(tmp_path / "api.sock", lambda asked: reply):
        with pytest.raises(ApiFailed, match=why):
            await MachineApi(tmp_path / "api.sock").state()


async def test_no_monitor_is_told(tmp_path: Path) -> None:
    with pytest.raises(ApiFailed, match="GET /"):
        await MachineApi(tmp_path / "api.sock").state()
    with pytest.raises(ApiFailed, match="GET /"):
        await MachineApi(tmp_path / "none" / "api.sock").state()


async def test_a_silent_monitor_holds_nobody(tmp_path: Path) -> None:
    """There is a deadline for every answer."""
    held = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "api.sock")
    try:
        with pytest.raises(ApiFailed, match="Timeout"):
            await MachineApi(tmp_path / "api.sock", timeout_s=0.05).state()
    finally:
        held.set()
        server.close()
        await server.wait_closed()
