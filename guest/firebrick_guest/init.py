"""POST /init: the host tells the agent about its sandbox. May be repeated; each one updates."""

import os
import socket
import time
from calendar import timegm

from firebrick_guest.errors import ConnectError, HttpError
from firebrick_guest.http import Exchange
from firebrick_guest.json_text import flag, load_json, submessage, text, text_map
from firebrick_guest.logs import EventLog
from firebrick_guest.settings import Settings

MAX_BODY_BYTES = 16 * 1024 * 1024
# Below this a clock is left alone: stepping it disturbs programs more than being a little late.
CLOCK_SLACK_NS = 50_000_000


class InitRoute:
    def __init__(self, settings: Settings, log: EventLog) -> None:
        self._settings = settings
        self._log = log

    async def serve(self, exchange: Exchange) -> None:
        """Raises HttpError 400 (nonsense), 409 (older than what is known)."""
        raw = await exchange.read_all(MAX_BODY_BYTES)
        try:
            self._apply(load_json(raw))
        except ConnectError as exc:
            raise HttpError(400, exc.message) from exc
        exchange.answer(204)

    def _apply(self, body: dict[str, object]) -> None:
        """Everything is read and checked before anything is changed."""
        settings = self._settings
        told_at_ns = nanoseconds(text(body, "timestamp"))
        env = settings.checked_env(text_map(body, "envVars"))
        metadata = text_map(body, "metadata")
        access_token = text(body, "accessToken")
        is_open = flag(body, "open", False)
        default_user = text(body, "defaultUser") or settings.default_user
        default_workdir = text(body, "defaultWorkdir") or settings.default_workdir
        sandbox_id = text(body, "sandboxID") or settings.sandbox_id
        template_id = text(body, "templateID") or settings.template_id
        hostname = text(body, "hostname")
        if told_at_ns and told_at_ns < settings.told_at_ns:
            raise HttpError(409, "a later /init was accepted already")
        settings.told_at_ns = told_at_ns or settings.told_at_ns
        if submessage(body, "envVars") is not None:
            settings.env = env
        if submessage(body, "metadata") is not None:
            settings.metadata = metadata
        if access_token or is_open:
            settings.access_token = access_token
        settings.default_user, settings.default_workdir = default_user, default_workdir
        settings.sandbox_id, settings.template_id = sandbox_id, template_id
        self._set_machine(hostname, told_at_ns)
        # NOTE: last, so that nothing is served with half the settings. Without a token it stays closed
        # unless the host says in so many words that the sandbox is open.
        settings.is_ready = settings.is_ready or bool(access_token) or is_open
        self._log.add("info", "settings taken", sandboxID=sandbox_id)

    def _set_machine(self, hostname: str, told_at_ns: int) -> None:
        if os.getpid() != 1:
            # Then this is somebody's computer and no machine of ours.
            return
        try:
            if hostname and socket.gethostname() != hostname:
                socket.sethostname(hostname)
        except OSError as exc:
            self._log.add("debug", "the host name is not ours to set", reason=exc.strerror)
        set_clock(told_at_ns, self._log)


def set_clock(told_at_ns: int, log: EventLog) -> None:
    """Make it this time of day, nanoseconds since 1970, where the clock is ours; 0 is not told."""
    if os.getpid() != 1 or not told_at_ns or abs(time.time_ns() - told_at_ns) <= CLOCK_SLACK_NS:
        return
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, told_at_ns)
    except OSError as exc:
        # Where the kernel is shared the clock is the host's, and right.
        log.add("debug", "the clock is not ours to set", reason=exc.strerror)


def nanoseconds(timestamp: str) -> int:
    """RFC 3339 in UTC, up to nanoseconds; 0 for an empty one. Raises ConnectError."""
    if not timestamp:
        return 0
    whole, _, fraction = timestamp.removesuffix("Z").removesuffix("+00:00").partition(".")
    try:
        date, _, clock = whole.partition("T")
        parts = [int(part) for part in (*date.split("-"), *clock.split(":"))]
        year, month, day, hour, minute, second = parts
        seconds = timegm((year, month, day, hour, minute, second))
        return seconds * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
    except (ValueError, IndexError) as exc:
        raise ConnectError("invalid_argument", "timestamp must be RFC 3339 in UTC") from exc
