"""Firecracker's API: one request on its unix socket, and what it answered.

The socket lies in the jail, where its path may be longer than a socket's may be (107 bytes): it is reached through an
open descriptor of its directory. The VMM is in the hands of whoever broke out of the guest: answers are bounded.
"""

import json
import os
from pathlib import Path
from typing import Any

import httpx

REQUEST_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 65_536


class ApiFailed(Exception):
    """The monitor refused, or did not answer; the message says what was asked and what came back."""


class MachineApi:
    """The API of one monitor."""

    def __init__(self, socket: Path, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._socket = socket
        self._timeout_s = timeout_s

    async def state(self) -> str:
        """`Not started`, `Running` or `Paused`. Raises ApiFailed."""
        return str((await self._ask("GET", "/")).get("state", ""))

    async def pause(self) -> None:
        """Its virtual CPUs stand still when this returns. Raises ApiFailed."""
        await self._ask("PATCH", "/vm", {"state": "Paused"})

    async def resume(self) -> None:
        """Raises ApiFailed."""
        await self._ask("PATCH", "/vm", {"state": "Resumed"})

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        what = f"{method} {path}"
        try:
            directory = os.open(self._socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise ApiFailed(f"{what}: {exc}") from exc
        try:
            transport = httpx.AsyncHTTPTransport(uds=f"/proc/self/fd/{directory}/{self._socket.name}")
            async with (
                httpx.AsyncClient(transport=transport, timeout=self._timeout_s) as client,
                client.stream(method, f"http://firecracker{path}", json=body) as answer,
            ):
                text = b""
                async for piece in answer.aiter_raw():
                    text += piece
                    if len(text) > MAX_ANSWER_BYTES:
                        raise ApiFailed(f"{what}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
        except (httpx.HTTPError, OSError) as exc:
            raise ApiFailed(f"{what}: {exc!r}") from exc
        finally:
            os.close(directory)
        if not answer.is_success:
            raise ApiFailed(f"{what}: {answer.status_code} {text[:500].decode(errors='replace')}")
        try:
            found = json.loads(text) if text else {}
        except ValueError as exc:
            raise ApiFailed(f"{what}: the answer is no JSON") from exc
        return found if isinstance(found, dict) else {}
