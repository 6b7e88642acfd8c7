"""An HTTP/1.1 answer of a guest agent, read with bounds: nothing that a guest sends is trusted."""

import asyncio
from collections.abc import Mapping

from firebrick.guestlink.base import GuestSilent

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 2 * 1024 * 1024


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as exc:
        raise GuestSilent("The guest agent's answer has too long a head.") from exc
    first, *rest = head[:-4].decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not (parts[1].isascii() and parts[1].isdigit()):
        raise GuestSilent("The guest agent's answer is not HTTP.")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return int(parts[1][:4]), headers


async def read_body(reader: asyncio.StreamReader, status: int, headers: Mapping[str, str]) -> bytes:
    if status == 204 or status < 200:
        return b""
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 10):
        raise GuestSilent("The guest agent's answer has no length.")
    if int(length) > MAX_BODY_BYTES:
        raise GuestSilent(f"The guest agent's answer is longer than {MAX_BODY_BYTES} bytes.")
    return await reader.readexactly(int(length))
