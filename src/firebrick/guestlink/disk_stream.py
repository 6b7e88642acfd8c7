"""Carry a machine's disk, as the guest agent packs it, to a file and back. What is in it is the guest's own matter.

GET /firebrick/disk?since=<s>&hold=<0|1>     the archive, ended by END and the connection's end
PUT /firebrick/disk                          204 when all of it is in place
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from firebrick.guestlink.base import CONTROL_HEADER, GuestSilent
from firebrick.guestlink.http_answer import read_body, read_head

END = b'\x00\x00\x00\x0c{"end":true}'
"""The last record. A connection that broke has not sent it."""

PIECE_BYTES = 1 << 20
IDLE_S = 30.0
"""How long a guest may send or take nothing."""
IMPORTED_S = 60.0

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Stream]]


async def receive_disk(
    connect: Connect, token: str, target: Path, *, since_s: float, most_bytes: int, holds: bool
) -> None:
    """Raises GuestSilent; OSError of `target` only."""
    path = f"/firebrick/disk?since={since_s:.6f}&hold={int(holds)}"
    with target.open("wb") as file:
        try:
            async with asyncio.timeout(IDLE_S):
                reader, writer = await connect()
        except OSError as exc:
            raise GuestSilent("The guest agent could not be reached for its disk.", detail=repr(exc)) from exc
        try:
            writer.write(_head("GET", path, token))
            async with asyncio.timeout(IDLE_S):
                status, headers = await read_head(reader)
            if status != 200:
                answer = await read_body(reader, status, headers)
                raise GuestSilent(f"The guest agent refused its disk with {status}.", detail=answer[:500].decode())
            tail, total_bytes = b"", 0
            while piece := await _next_piece(reader):
                total_bytes += len(piece)
                if total_bytes > most_bytes:
                    raise GuestSilent(f"The guest sent more than the {most_bytes} bytes that its disk may hold.")
                await asyncio.to_thread(file.write, piece)
                tail = (tail + piece)[-len(END) :]
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError) as exc:
            raise GuestSilent("The guest agent broke off while it sent its disk.", detail=repr(exc)) from exc
        finally:
            writer.transport.abort()
        if tail != END:
            raise GuestSilent("The guest agent did not send its disk to the end.")
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())


async def send_disk(connect: Connect, token: str, source: Path) -> None:
    """Raises GuestSilent; OSError of `source` only."""
    with source.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        try:
            async with asyncio.timeout(IDLE_S):
                reader, writer = await connect()
        except OSError as exc:
            raise GuestSilent("The guest agent could not be reached to take its disk.", detail=repr(exc)) from exc
        try:
            writer.write(_head("PUT", "/firebrick/disk", token, f"Content-Length: {size_bytes}\r\n"))
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                writer.write(piece)
                async with asyncio.timeout(IDLE_S):
                    await writer.drain()
            async with asyncio.timeout(IMPORTED_S):
                status, headers = await read_head(reader)
                answer = await read_body(reader, status, headers)
            if status != 204:
                raise GuestSilent(
                    f"The guest agent could not take its disk ({status}).", detail=answer[:500].decode(errors="replace")
                )
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError) as exc:
            raise GuestSilent("The guest agent broke off while it took its disk.", detail=repr(exc)) from exc
        finally:
            writer.transport.abort()


async def _next_piece(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(IDLE_S):
        return await reader.read(PIECE_BYTES)


def _head(method: str, path: str, token: str, more: str = "") -> bytes:
    lines = f"{method} {path} HTTP/1.1\r\nHost: guest\r\n{CONTROL_HEADER}: {token}\r\nConnection: close\r\n"
    return f"{lines}{more}\r\n".encode()
