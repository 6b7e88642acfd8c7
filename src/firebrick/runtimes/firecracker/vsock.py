"""A line to a port inside a microVM: Firecracker's vsock, which on the host is a unix socket of the monitor's.

    host ──"CONNECT 49983\\n"──▶ monitor ──▶ guest        host ◀──"OK 1073741824\\n"── monitor

Then the bytes are the guest's. Nothing of the host's listens for what a guest begins (`<socket>_<port>`): there is no
way back. The monitor may be in the hands of whoever broke out of the guest: what it says is bounded and has a deadline.
"""

import asyncio
import re
import socket
from pathlib import Path

from firebrick.runtimes.firecracker.jail_socket import socket_path

DIAL_TIMEOUT_S = 10.0
_MOST_ANSWER_BYTES = 32
_ACCEPTED = re.compile(rb"OK \d{1,10}\n")


async def dial(place: Path, port: int, *, timeout_s: float = DIAL_TIMEOUT_S) -> socket.socket:
    """A connected stream to a port inside; the caller closes it. `place` is the monitor's socket.

    Raises: FileNotFoundError: there is no such socket; OSError: nobody listens inside, or the monitor makes no sense;
    TimeoutError. Cancel: nothing is left.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.setblocking(False)
        async with asyncio.timeout(timeout_s):
            await _connect(stream, place, port)
    except BaseException:
        stream.close()
        raise
    return stream


async def _connect(stream: socket.socket, place: Path, port: int) -> None:
    loop = asyncio.get_running_loop()
    with socket_path(place) as path:
        await loop.sock_connect(stream, path)
    await loop.sock_sendall(stream, b"CONNECT %d\n" % port)
    answer = b""
    # Nobody inside speaks first, so what comes up to the end of the line is the monitor's whole answer.
    while not answer.endswith(b"\n") and len(answer) < _MOST_ANSWER_BYTES:
        piece = await loop.sock_recv(stream, _MOST_ANSWER_BYTES - len(answer))
        if not piece:
            raise ConnectionRefusedError(f"nobody listens on port {port} inside")
        answer += piece
    if not _ACCEPTED.fullmatch(answer):
        raise ConnectionAbortedError(f"the monitor's answer for port {port} makes no sense")
