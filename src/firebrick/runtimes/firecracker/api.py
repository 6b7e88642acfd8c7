"""Firecracker's API: one request on its unix socket, and what it answered.

The monitor is in the hands of whoever broke out of the guest: answers are bounded, and have a deadline.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from firebrick.runtimes.firecracker.http_exchange import encode_request, exchange

REQUEST_TIMEOUT_S = 10.0
_POLL_FIRST_S, _POLL_MOST_S, _POLL_GROWTH = 0.001, 0.1, 1.3


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

    async def wait_state(self, state: str, *, is_alive: Callable[[], bool]) -> None:
        """Return when the monitor is in that state. Raises ApiFailed: it ended, or did not get there in time."""
        why = ""
        pause_s = _POLL_FIRST_S
        try:
            async with asyncio.timeout(self._timeout_s):
                while is_alive():
                    try:
                        if await self.state() == state:
                            return
                    except ApiFailed as exc:
                        why = str(exc)
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * _POLL_GROWTH, _POLL_MOST_S)
        except TimeoutError:
            why = f"not {state.lower()} after {self._timeout_s:g} s. {why}"
        raise ApiFailed(why or "the monitor has ended")

    async def version(self) -> str:
        """The monitor's own, such as 1.12.1. Raises ApiFailed."""
        return str((await self._ask("GET", "/")).get("vmm_version", ""))[:32]

    async def pause(self) -> None:
        """Its virtual CPUs stand still when this returns. Raises ApiFailed."""
        await self._ask("PATCH", "/vm", {"state": "Paused"})

    async def resume(self) -> None:
        """Raises ApiFailed."""
        await self._ask("PATCH", "/vm", {"state": "Resumed"})

    async def save(self, *, memory: str, state: str, timeout_s: float, is_diff: bool = False) -> None:
        """Write a paused machine to files, by their paths in the jail. Raises ApiFailed.

        Args:
            is_diff: only pages that were written since the last save, or since the load, into a file that has the
                others; of a machine that was loaded with `tracks`.

        Cancel, and timeout: the monitor goes on writing, and answers nothing until it is done.
        """
        kind = "Diff" if is_diff else "Full"
        body = {"snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory}
        await self._ask("PUT", "/snapshot/create", body, timeout_s=timeout_s)

    async def load(self, *, memory: str, state: str, resumes: bool, tracks: bool) -> None:
        """Make a fresh monitor the machine that was saved; its memory is mapped, and read when it is touched.

        Args:
            tracks: it remembers which pages are written from now on.

        Raises ApiFailed; the monitor ends then.
        """
        body = {
            "snapshot_path": state,
            "mem_backend": {"backend_type": "File", "backend_path": memory},
            "resume_vm": resumes,
            "enable_diff_snapshots": tracks,
        }
        await self._ask("PUT", "/snapshot/load", body)

    async def balloon(self, size_mib: int) -> None:
        """Ask the guest's kernel to take so much memory for nobody, which the host gets back, or to take it no longer.

        Raises ApiFailed: there is no balloon, or no driver of it inside.
        """
        await self._ask("PATCH", "/balloon", {"amount_mib": size_mib})

    async def balloon_mib(self) -> int:
        """How much it has taken, by its own word. Raises ApiFailed."""
        found = (await self._ask("GET", "/balloon/statistics")).get("actual_mib")
        if not isinstance(found, int):
            raise ApiFailed("GET /balloon/statistics: the answer has no size")
        return found

    async def change(self, path: str, body: Mapping[str, Any]) -> None:
        """Change a device of a machine that was started. Raises ApiFailed."""
        await self._ask("PATCH", path, body)

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        what = f"{method} {path}"
        try:
            request = encode_request(method, path, body)
            answer = await exchange(self._socket, request, timeout_s=timeout_s or self._timeout_s)
        except (OSError, ValueError) as exc:
            raise ApiFailed(f"{what}: {exc!r}") from exc
        if not 200 <= answer.status < 300:
            raise ApiFailed(f"{what}: {answer.status} {answer.body[:500].decode(errors='replace')}")
        try:
            found = json.loads(answer.body) if answer.body else {}
        except ValueError as exc:
            raise ApiFailed(f"{what}: the answer is no JSON") from exc
        return found if isinstance(found, dict) else {}
