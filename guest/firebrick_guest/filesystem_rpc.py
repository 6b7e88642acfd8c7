"""The service filesystem.Filesystem: look, list, make, move and remove."""

import asyncio
import os
import shutil
import stat

from firebrick_guest.auth import username
from firebrick_guest.connect import Message
from firebrick_guest.entry import entry_info
from firebrick_guest.errors import ConnectError, connect_error_of
from firebrick_guest.http import Exchange
from firebrick_guest.json_text import number, text
from firebrick_guest.settings import Settings
from firebrick_guest.users import User, make_parents, resolve_path
from firebrick_guest.watching import Watches

MAX_DEPTH = 1000
# An answer has to fit into a client's memory and ours; a tree larger than this is listed in parts.
MAX_ENTRIES = 100_000


class FilesystemService:
    def __init__(self, settings: Settings, watches: Watches) -> None:
        self._settings = settings
        self._watches = watches

    async def stat(self, exchange: Exchange, request: Message) -> Message:
        path, _ = self._path(exchange, request, "path")
        return self._entry(path, f"file not found: {path}")

    async def make_dir(self, exchange: Exchange, request: Message) -> Message:
        path, user = self._path(exchange, request, "path")
        self._watches.catch_up()
        try:
            found = os.stat(path)
        except FileNotFoundError:
            found = None
        except OSError as exc:
            raise connect_error_of(exc, f"cannot make directory {path}") from exc
        if found and stat.S_ISDIR(found.st_mode):
            raise ConnectError("already_exists", f"directory already exists: {path}")
        if found:
            raise ConnectError("invalid_argument", f"path already exists but it is not a directory: {path}")
        self._parents(path, user)
        return self._entry(path, f"file not found: {path}")

    async def move(self, exchange: Exchange, request: Message) -> Message:
        source, user = self._path(exchange, request, "source")
        destination, _ = self._path(exchange, request, "destination")
        if not os.path.lexists(source):
            raise ConnectError("not_found", f"source file not found: {source}")
        self._parents(destination.rpartition("/")[0], user)
        self._watches.catch_up()
        try:
            os.rename(source, destination)
        except OSError as exc:
            raise connect_error_of(exc, f"cannot move {source} to {destination}") from exc
        return self._entry(destination, f"file not found: {destination}")

    async def list_dir(self, exchange: Exchange, request: Message) -> Message:
        path, _ = self._path(exchange, request, "path")
        depth = number(request, "depth", 1, low=0, high=2**32 - 1) or 1
        try:
            found = os.stat(path)
        except FileNotFoundError as exc:
            raise ConnectError("not_found", f"path not found: {path}") from exc
        except OSError as exc:
            raise connect_error_of(exc, f"cannot list {path}") from exc
        if not stat.S_ISDIR(found.st_mode):
            raise ConnectError("invalid_argument", f"path is not a directory: {path}")
        # In a thread: a large tree takes long, and others are served meanwhile.
        return {"entries": await asyncio.to_thread(self._walk, path, min(depth, MAX_DEPTH))}

    async def remove(self, exchange: Exchange, request: Message) -> Message:
        path, _ = self._path(exchange, request, "path")
        self._watches.catch_up()
        if path == "/":
            raise ConnectError("invalid_argument", "the root directory cannot be removed")
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                await asyncio.to_thread(shutil.rmtree, path)
            else:
                os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as exc:
            raise connect_error_of(exc, f"cannot remove {path}") from exc
        return {}

    def _path(self, exchange: Exchange, request: Message, name: str) -> tuple[str, User]:
        user = self._settings.user(username(exchange.head))
        return resolve_path(text(request, name), user, self._settings.default_workdir), user

    def _entry(self, path: str, missing: str) -> Message:
        try:
            return {"entry": entry_info(path, self._settings.accounts)}
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise ConnectError("not_found", missing) from exc
        except OSError as exc:
            raise connect_error_of(exc, f"cannot look at {path}") from exc

    def _parents(self, path: str, user: User) -> None:
        try:
            make_parents(path, user)
        except NotADirectoryError as exc:
            raise ConnectError("invalid_argument", f"path is a file: {exc.filename}") from exc
        except OSError as exc:
            raise connect_error_of(exc, f"cannot make directory {path}") from exc

    def _walk(self, root: str, depth: int) -> list[Message]:
        """Everything below `root`, pre-order and lexical, links not followed."""
        entries: list[Message] = []
        pending = [(f"{root.rstrip('/')}/{name}", 1) for name in reversed(_names(root))]
        while pending:
            path, level = pending.pop()
            try:
                entries.append(entry_info(path, self._settings.accounts))
                deeper = level < depth and stat.S_ISDIR(os.lstat(path).st_mode)
                if deeper:
                    pending += [(f"{path}/{name}", level + 1) for name in reversed(_names(path))]
            except OSError:
                # It vanished, or may not be read, while we walked: the rest is still worth having.
                continue
            if len(entries) > MAX_ENTRIES:
                raise ConnectError("resource_exhausted", f"more than {MAX_ENTRIES} entries below {root}")
        return entries


def _names(directory: str) -> list[str]:
    return sorted(os.listdir(directory))
