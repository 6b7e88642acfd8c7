"""One HTTP/1.1 request on a unix socket in a jail, and its answer. Nothing that comes back is trusted.

By hand, because it is on the way of every start: httpx takes 2 ms of processor time for one request, and this 0.35.
"""

import asyncio
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firebrick.runtimes.firecracker.jail_socket import socket_path

MAX_HEAD_BYTES, MAX_BODY_BYTES = 16_384, 65_536
_FIRST_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |\r|\Z)")
_LENGTH = re.compile(rb"\r\nContent-Length: *(\d{1,9}) *(?:\r|\Z)", re.IGNORECASE)
_PIECE_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: bytes


def encode_request(method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
    payload = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: firecracker\r\nAccept: application/json\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    return f"{head}\r\n".encode() + payload


def parse_answer(data: bytes) -> Answer | None:
    """None: more of it must come. Raises ValueError: what came is no answer, or too long a one."""
    head, end, body = data[: MAX_HEAD_BYTES + 4].partition(b"\r\n\r\n")
    if not end:
        if len(data) > MAX_HEAD_BYTES:
            raise ValueError(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes")
        return None
    first = _FIRST_LINE.match(head)
    if first is None:
        raise ValueError("the answer is not HTTP")
    status, length = int(first.group(1)), _LENGTH.search(head)
    # Of an answer that says nothing of its length nothing follows: so are those without content.
    wanted = 0 if length is None or status == 204 else int(length.group(1))
    if wanted > MAX_BODY_BYTES:
        raise ValueError(f"the answer is longer than {MAX_BODY_BYTES} bytes")
    body = data[len(head) + 4 :]
    return Answer(status=status, body=body[:wanted]) if len(body) >= wanted else None


async def exchange(place: Path, request: bytes, *, timeout_s: float) -> Answer:
    """Raises OSError: there is no such socket, or nobody answers; TimeoutError; ValueError, as `parse_answer`."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as stream:
        stream.setblocking(False)
        async with asyncio.timeout(timeout_s):
            with socket_path(place) as path:
                await loop.sock_connect(stream, path)
            await loop.sock_sendall(stream, request)
            data = b""
            while (answer := parse_answer(data)) is None:
                piece = await loop.sock_recv(stream, _PIECE_BYTES)
                if not piece:
                    raise ConnectionResetError("it broke off before its answer")
                data += piece
            return answer
