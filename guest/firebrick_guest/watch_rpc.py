"""The watching half of the service filesystem.Filesystem: streamed (WatchDir) and polled (CreateWatcher and others)."""

import asyncio
import os
import stat
from binascii import hexlify

from firebrick_guest.auth import username
from firebrick_guest.connect import Message, ServerStream, frame, keepalive_s, timeout_s
from firebrick_guest.errors import ConnectError, connect_error_of
from firebrick_guest.http import Exchange
from firebrick_guest.inotify import is_network_mount
from firebrick_guest.json_text import flag, text
from firebrick_guest.settings import Settings
from firebrick_guest.users import resolve_path
from firebrick_guest.watching import MAX_WATCHERS, Watcher, Watches

START_FRAME = frame(b'{"start":{}}')
KEEPALIVE_FRAME = frame(b'{"keepalive":{}}')
# What a client of a stream may leave unread on the connection; the rest waits in its watcher.
AHEAD_BYTES = 128 * 1024
# Events are gathered this long: HTTP/2 clients choke on thousands of small frames.
GATHER_S = 0.003


class WatchService:
    def __init__(self, settings: Settings, watches: Watches) -> None:
        self._settings = settings
        self._watches = watches
        self._polled: dict[str, Watcher] = {}

    async def watch(self, stream: ServerStream, request: Message) -> None:
        timeout = timeout_s(stream.exchange)
        try:
            async with asyncio.timeout(timeout or None):
                watcher = await self._open(stream.exchange, request)
                try:
                    await _follow(watcher, stream)
                finally:
                    watcher.close()
        except TimeoutError as exc:
            raise ConnectError("deadline_exceeded", "the stream's timeout has passed") from exc

    async def create(self, exchange: Exchange, request: Message) -> Message:
        if len(self._polled) >= MAX_WATCHERS:
            # Those that ended by an error have told it, or nobody asks any more.
            self._polled = {name: watcher for name, watcher in self._polled.items() if not watcher.error}
        watcher = await self._open(exchange, request)
        name = f"w{hexlify(os.urandom(10)).decode()}"
        self._polled[name] = watcher
        return {"watcherId": name}

    async def get_events(self, exchange: Exchange, request: Message) -> Message | bytes:
        watcher = self._find(request)
        self._watches.catch_up()
        if watcher.error:
            raise watcher.error
        events = watcher.take()
        return b'{"events":[%b]}' % b",".join(events) if events else {}

    async def remove(self, exchange: Exchange, request: Message) -> Message:
        self._find(request).close()
        del self._polled[text(request, "watcherId") or text(request, "watcher_id")]
        return {}

    def _find(self, request: Message) -> Watcher:
        name = text(request, "watcherId") or text(request, "watcher_id")
        found = self._polled.get(name)
        if found is None:
            raise ConnectError("not_found", f"watcher with id {name} not found")
        return found

    async def _open(self, exchange: Exchange, request: Message) -> Watcher:
        user = self._settings.user(username(exchange.head))
        path = resolve_path(text(request, "path"), user, self._settings.default_workdir)
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise ConnectError("invalid_argument", f"path {path} not a directory")
            if not _flag(request, "allowNetworkMounts", "allow_network_mounts") and is_network_mount(path):
                raise ConnectError("invalid_argument", f"cannot watch path on network filesystem: {path}")
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise ConnectError("not_found", f"path {path} not found: {(exc.strerror or '').lower()}") from exc
        except OSError as exc:
            raise connect_error_of(exc, f"cannot watch {path}") from exc
        include_entry = _flag(request, "includeEntry", "include_entry")
        return await self._watches.open(path, recursive=flag(request, "recursive", False), include_entry=include_entry)


async def _follow(watcher: Watcher, stream: ServerStream) -> None:
    silence_s = keepalive_s(stream.exchange)
    stream.send_frames(START_FRAME)
    stream.exchange.probe_with(KEEPALIVE_FRAME)
    while True:
        if not await watcher.wait(silence_s):
            stream.send_frames(KEEPALIVE_FRAME)
            continue
        if watcher.error:
            raise watcher.error
        stream.send_frames(b"".join(frame(b'{"filesystem":%b}' % event) for event in watcher.take()))
        await stream.drain(AHEAD_BYTES)
        await asyncio.sleep(GATHER_S)


def _flag(request: Message, name: str, other_name: str) -> bool:
    """Protobuf's JSON takes a field by either of its names."""
    return flag(request, name if name in request else other_name, False)
