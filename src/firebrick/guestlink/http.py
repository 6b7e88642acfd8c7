"""The guest link over TCP, or over a line of the runtime's: one small HTTP/1.1 exchange at a time on a connection that
is kept between them.

Written by hand because it is on the create path: a general client costs milliseconds, and this one need only
speak to our own agent, which frames every answer of its control routes with a Content-Length.
"""

import asyncio
import json
import math
from base64 import b64encode
from pathlib import Path
from typing import Any

from firebrick.guestlink.base import (
    AGENT_PORT,
    CONTROL_HEADER,
    MAX_LOG_ENTRIES,
    Dial,
    GuestInit,
    GuestLogEntry,
    GuestRenewal,
    GuestSilent,
)
from firebrick.guestlink.disk_stream import Stream, receive_disk, send_disk
from firebrick.guestlink.http_answer import MAX_HEAD_BYTES, read_body, read_head
from firebrick.log import get_log

INIT_TIMEOUT_S = 15.0
POLL_S = 0.003
# A SYN to a guest whose network stack is not up yet is lost, not refused, and the kernel would send it again
# only after a second: so the first attempts give up early and later ones allow for a busy machine. All follow
# `patience`: each attempt costs guest and host, and where all is slow the first would cut off answers that come.
FIRST_ATTEMPT_S = 0.02
ATTEMPT_GROWTH = 1.3
LONGEST_ATTEMPT_S = 2.0
log = get_log("guestlink")
_LEVELS = frozenset({"debug", "info", "warn", "error"})


class HttpGuestLink:
    """`GuestLink` to one machine."""

    def __init__(
        self,
        address: str,
        control_token: str,
        *,
        port: int = AGENT_PORT,
        dial: Dial | None = None,
        patience: float = 1.0,
    ) -> None:
        self._address = address
        self._dial = dial
        self._port = port
        self._patience = patience
        self._token = control_token
        self._stream: Stream | None = None

    async def wait_ready(self, *, timeout_s: float) -> None:
        attempt_s = FIRST_ATTEMPT_S * self._patience
        last: Exception | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        async with asyncio.timeout(attempt_s):
                            await self._exchange("GET", "/health", None)
                        return
                    except TimeoutError as exc:
                        last = exc
                        attempt_s = min(attempt_s * ATTEMPT_GROWTH, LONGEST_ATTEMPT_S * self._patience)
                    except (OSError, GuestSilent) as exc:
                        last = exc
                    await asyncio.sleep(POLL_S * self._patience)
        except TimeoutError:
            raise GuestSilent(
                f"The guest agent did not become ready within {timeout_s:g} s.", detail=f"{self._address}: {last!r}"
            ) from last

    async def init(self, settings: GuestInit) -> None:
        await self._ask("POST", "/init", encode_init(settings), timeout_s=INIT_TIMEOUT_S * self._patience)

    async def logs(self, since: int, *, timeout_s: float) -> tuple[tuple[GuestLogEntry, ...], int]:
        path = f"/firebrick/logs?since={since}&limit={MAX_LOG_ENTRIES}"
        return decode_logs(await self._ask("GET", path, None, timeout_s=timeout_s), since)

    async def export_disk(self, target: Path, *, since_s: float, most_bytes: int, holds: bool) -> None:
        self.close()
        await receive_disk(self._connect, self._token, target, since_s=since_s, most_bytes=most_bytes, holds=holds)

    async def import_disk(self, source: Path) -> None:
        await send_disk(self._connect, self._token, source)

    async def flush(self, *, timeout_s: float) -> None:
        await self._ask("POST", "/firebrick/flush", None, timeout_s=timeout_s)

    async def hold(self, *, for_s: float, timeout_s: float) -> None:
        await self._ask("POST", f"/firebrick/hold?for={math.ceil(for_s)}", None, timeout_s=timeout_s)

    async def renew(self, renewal: GuestRenewal, *, timeout_s: float) -> None:
        try:
            answer = await self._ask("POST", "/firebrick/renew", encode_renewal(renewal), timeout_s=timeout_s)
        finally:
            self.close()
        check_renewal(answer)

    async def go_on(self) -> None:
        try:
            await self._ask("POST", "/firebrick/go-on", None, timeout_s=INIT_TIMEOUT_S * self._patience)
        except GuestSilent as exc:
            log.warning("guest.held", reason=exc.message, detail=exc.detail)
        finally:
            self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream[1].transport.abort()
            self._stream = None

    async def _ask(self, method: str, path: str, body: bytes | None, *, timeout_s: float) -> bytes:
        """One exchange; once more on a fresh connection when the kept one turns out to be dead."""
        what = f"{method} {path.partition('?')[0]}"
        try:
            async with asyncio.timeout(timeout_s):
                if self._stream is not None:
                    try:
                        return await self._exchange(method, path, body)
                    except OSError:
                        pass
                return await self._exchange(method, path, body)
        except TimeoutError as exc:
            raise GuestSilent(f"The guest agent did not answer {what} within {timeout_s:g} s.") from exc
        except OSError as exc:
            raise GuestSilent(f"The guest agent could not be reached for {what}.", detail=repr(exc)) from exc

    async def _exchange(self, method: str, path: str, body: bytes | None) -> bytes:
        kept, self._stream = self._stream, None
        reader, writer = kept or await self._connect()
        done = False
        try:
            writer.write(self._request(method, path, body))
            status, headers = await read_head(reader)
            answer = await read_body(reader, status, headers)
            if not 200 <= status < 300:
                raise GuestSilent(
                    f"The guest agent refused {method} {path.partition('?')[0]} with {status}.",
                    detail=answer[:500].decode(errors="replace"),
                )
            done = headers.get("connection", "").lower() != "close"
            return answer
        except asyncio.IncompleteReadError as exc:
            raise ConnectionResetError("the guest closed the connection") from exc
        finally:
            if done:
                self._stream = (reader, writer)
            else:
                writer.transport.abort()

    async def _connect(self) -> Stream:
        if self._dial is not None:
            try:
                return await asyncio.open_connection(sock=await self._dial(), limit=MAX_HEAD_BYTES)
            except FileNotFoundError:
                # An earlier version of ours started this machine: its agent is at its address only.
                pass
        return await asyncio.open_connection(self._address, self._port, limit=MAX_HEAD_BYTES)

    def _request(self, method: str, path: str, body: bytes | None) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: guest", f"{CONTROL_HEADER}: {self._token}"]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def encode_init(settings: GuestInit) -> bytes:
    """The body of POST /init: E2B's fields and ours."""
    body: dict[str, Any] = {
        "envVars": dict(settings.env),
        "accessToken": settings.access_token or None,
        "timestamp": settings.timestamp.isoformat().replace("+00:00", "Z"),
        "defaultUser": settings.default_user,
        "defaultWorkdir": settings.default_workdir or None,
        "sandboxID": settings.sandbox_id,
        "templateID": settings.template_id,
        "hostname": settings.hostname,
        "metadata": dict(settings.metadata),
        "open": True if not settings.access_token else None,
    }
    return json.dumps({key: value for key, value in body.items() if value is not None}).encode()


def encode_renewal(renewal: GuestRenewal) -> bytes:
    """The body of POST /firebrick/renew."""
    return json.dumps(
        {
            "controlToken": renewal.control_token,
            "timestamp": renewal.timestamp.isoformat().replace("+00:00", "Z"),
            "entropy": b64encode(renewal.entropy).decode(),
            "other": renewal.is_other,
        }
    ).encode()


def check_renewal(body: bytes) -> None:
    """Raises GuestSilent unless the answer says that its kernel has new randomness and its processes stood still."""
    try:
        answer = json.loads(body)
        is_random, was_held = answer["randomness"] is True, answer["held"] is True
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise GuestSilent("The guest agent's answer to its renewal makes no sense.", detail=repr(exc)[:200]) from exc
    if not is_random:
        raise GuestSilent("The machine took no new randomness, so it may not go on from its memory.")
    if not was_held:
        raise GuestSilent("Processes of the machine ran on before it was renewed, so it may not go on from its memory.")


def decode_logs(body: bytes, since: int) -> tuple[tuple[GuestLogEntry, ...], int]:
    """Read the agent's log answer; entries that make no sense are refused with the whole answer."""
    try:
        answer = json.loads(body)
        entries = answer["entries"]
        following = answer["next"]
        if not isinstance(entries, list) or len(entries) > MAX_LOG_ENTRIES or not _is_count(following):
            raise ValueError("unexpected shape")
        return tuple(_log_entry(entry) for entry in entries), max(following, since)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise GuestSilent("The guest agent's log answer makes no sense.", detail=repr(exc)[:200]) from exc


def _log_entry(raw: Any) -> GuestLogEntry:
    if not _is_count(raw["seq"]) or not _is_count(raw["timestampUs"]):
        raise ValueError("numbers expected")
    fields = raw.get("fields") or {}
    if not isinstance(raw["message"], str) or not isinstance(fields, dict):
        raise ValueError("text expected")
    return GuestLogEntry(
        seq=raw["seq"],
        timestamp_us=raw["timestampUs"],
        level=raw["level"] if raw["level"] in _LEVELS else "info",
        message=raw["message"][:4096],
        fields={str(key)[:128]: str(value)[:1024] for key, value in list(fields.items())[:32]},
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
