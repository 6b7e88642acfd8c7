"""Watched directories: the kernel's events become E2B's, for any number of watchers over one queue.

                     ┌ Watcher "a", recursive:  watch 1 = "", watch 2 = "sub/"
    inotify ─ Watches┤
                     └ Watcher "a/sub":         watch 2 = ""

The kernel knows a directory by a number and nothing of trees; each watcher keeps what the number means to it. A
directory that appears below a recursive watcher is watched at once, and what was put into it before that is told
from a look into it. One queue for all, because a host has few (128 for each user).
"""

import asyncio
import os
import stat
from collections import deque
from errno import ENOSPC

from firebrick_guest import inotify
from firebrick_guest.entry import entry_info
from firebrick_guest.errors import ConnectError, connect_error_of
from firebrick_guest.inotify import Inotify
from firebrick_guest.json_text import dump_json
from firebrick_guest.users import Accounts

MAX_WATCHERS = 256
MAX_DIRECTORIES = 32 * 1024
# What may wait for one watcher's reader, and for all of them; beyond that events are lost and the watcher says so.
WAITING_BYTES = 4 * 1024 * 1024
ALL_WAITING_BYTES = 16 * 1024 * 1024
EVENT_WEIGHT_BYTES = 100
# Directories armed in one go, and slices of the queue read in one go, before others get their turn.
ARM_COUNT = 200
CATCH_UP_READS = 100

_KINDS = (
    (inotify.CREATE | inotify.MOVED_TO, "CREATE"),
    (inotify.MOVED_FROM | inotify.MOVE_SELF, "RENAME"),
    (inotify.ATTRIB, "CHMOD"),
    (inotify.MODIFY, "WRITE"),
    (inotify.DELETE | inotify.DELETE_SELF, "REMOVE"),
)
# Of what was removed or renamed something else may have the name by now.
_WITH_ENTRY = ("CREATE", "CHMOD", "WRITE")


class Watcher:
    """One client's view of a directory. `dirs` are the watches it follows and where below the root each is: "" or
    "sub/". Events wait in `take`'s order, as JSON; `error` is set when it has ended before it was closed."""

    def __init__(self, watches: "Watches", path: str, *, recursive: bool, include_entry: bool) -> None:
        self._watches = watches
        self.path = path
        self.recursive = recursive
        self._include_entry = include_entry
        self.dirs: dict[int, str] = {}
        # Directories to be watched: where they are, and whether they are new, so that what is in them is news.
        self.to_arm: deque[tuple[str, bool]] = deque()
        # Directories moved away, by cookie: their names, and the watches in them. Either the other half of the
        # move is next to come, or they have left the tree.
        self._moving: dict[int, tuple[str, list[int]]] = {}
        # Names told from a look into a new directory, whose own event is still to come.
        self._told_early: set[tuple[int, str]] = set()
        self._events: list[bytes] = []
        self.weight_bytes = 0
        self.is_over = False
        self.is_armed = asyncio.Event()
        self.error: ConnectError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_idle(self) -> bool:
        return not self._events and self.error is None

    def take(self) -> list[bytes]:
        """What has happened since the last time: filesystem.FilesystemEvents, in JSON."""
        events, self._events = self._events, []
        self._watches.weight_bytes -= self.weight_bytes
        self.weight_bytes = 0
        return events

    async def wait(self, timeout_s: float) -> bool:
        """Until there is something to take, or an error; False when `timeout_s` passes first."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, _set, self._waiter)
        try:
            if self.is_idle:
                await self._waiter
        finally:
            timer.cancel()
            self._waiter = None
        return not self.is_idle

    def close(self) -> None:
        self.take()
        self._watches.leave(self)

    def fail(self, error: ConnectError) -> None:
        """End it: what waited is dropped, for without the rest it would mislead."""
        if self.error is None:
            self.close()
            self.error = error
            self._wake()

    def handle(self, watch: int, mask: int, cookie: int, name: str) -> None:
        """One of the kernel's events in a directory that this watcher follows."""
        prefix = self.dirs.get(watch)
        kind = next((kind for bits, kind in _KINDS if mask & bits), None)
        if prefix is None or kind is None or any(watch in inside for _, inside in self._moving.values()):
            return
        if not name:
            # Of a directory below, the one above it has told already.
            if not prefix:
                self._tell(kind, ".")
                if kind == "RENAME":
                    # Where it is now nobody says, so nothing more can be told of it under its old name.
                    self._watches.unfollow(self, list(self.dirs))
            return
        if mask & inotify.CREATE and (watch, name) in self._told_early:
            self._told_early.discard((watch, name))
            return
        if mask & (inotify.DELETE | inotify.MOVED_FROM):
            self._told_early.discard((watch, name))
        self._tell(kind, prefix + name)
        if mask & inotify.IS_DIRECTORY and self.recursive:
            self._follow(mask, cookie, f"{prefix}{name}/")

    def _follow(self, mask: int, cookie: int, prefix: str) -> None:
        """A directory below came, went or moved."""
        if mask & inotify.MOVED_FROM:
            inside = [watch for watch, place in self.dirs.items() if place.startswith(prefix)]
            self._moving[cookie] = (prefix, inside)
        elif mask & inotify.CREATE:
            self._queue(prefix, is_new=True)
        elif mask & inotify.MOVED_TO:
            before, inside = self._moving.pop(cookie, ("", []))
            for watch in inside:
                if watch in self.dirs:
                    self.dirs[watch] = prefix + self.dirs[watch].removeprefix(before)
            if before:
                self.to_arm = deque(
                    (prefix + place.removeprefix(before) if place.startswith(before) else place, is_new)
                    for place, is_new in self.to_arm
                )
            # One that was moved before we came to watch it was made in this tree a moment ago.
            self._queue(prefix, is_new=bool(before) and not inside)

    def settle(self) -> None:
        """Nothing more waits in the kernel's queue: what was expected from it will not come."""
        self._told_early.clear()
        for prefix, inside in self._moving.values():
            gone = [watch for watch in inside if self.dirs.get(watch, "").startswith(prefix)]
            self._watches.unfollow(self, gone)
        self._moving.clear()

    def arm_next(self, kernel: Inotify) -> None:
        """Watch the next directory of `to_arm`, and with `recursive` queue those in it. Raises OSError of the root."""
        prefix, is_new = self.to_arm.popleft()
        place = f"{self.path}/{prefix}" if prefix else self.path
        try:
            watch = kernel.add(place, follow=not prefix)
            is_known = watch in self.dirs
            # A directory that is mounted into itself keeps its first name.
            if self.dirs.get(watch) != "":
                self._watches.follow(self, watch, prefix)
            if self.recursive and not is_known:
                self._look_into(place, prefix, watch, is_new)
        except OSError as exc:
            if not prefix or inotify.is_exhausted(exc):
                raise
            # It is gone again, or is no place to look into: the rest of the tree is.

    def _look_into(self, place: str, prefix: str, watch: int, is_new: bool) -> None:
        with os.scandir(place) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            is_directory = entry.is_dir(follow_symlinks=False)
            if is_new:
                self._told_early.add((watch, entry.name))
                self._tell("CREATE", prefix + entry.name)
                if not is_directory and _has_content(entry):
                    self._tell("WRITE", prefix + entry.name)
            if is_directory:
                self._queue(f"{prefix}{entry.name}/", is_new=is_new)

    def _queue(self, prefix: str, *, is_new: bool) -> None:
        if not self.is_over:
            self.to_arm.append((prefix, is_new))
            self._watches.arming.add(self)

    def _tell(self, kind: str, name: str) -> None:
        if self.is_over:
            return
        event: dict[str, object] = {"name": name, "type": f"EVENT_TYPE_{kind}"}
        if self._include_entry and kind in _WITH_ENTRY:
            try:
                path = self.path if name == "." else f"{self.path.rstrip('/')}/{name}"
                event["entry"] = entry_info(path, self._watches.accounts)
            except OSError:
                # It is gone by now, and the event is true all the same.
                pass
        payload = dump_json(event)
        weight_bytes = len(payload) + EVENT_WEIGHT_BYTES
        self._events.append(payload)
        self.weight_bytes += weight_bytes
        self._watches.weight_bytes += weight_bytes
        if self.weight_bytes > WAITING_BYTES:
            self.fail(_lost("they were not read in time"))
        self._wake()

    def _wake(self) -> None:
        if self._waiter:
            _set(self._waiter)


class Watches:
    """Every watcher of a sandbox and the kernel's queue, which is open only while there is one."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.weight_bytes = 0
        self._kernel: Inotify | None = None
        self._watchers: set[Watcher] = set()
        self._followers: dict[int, set[Watcher]] = {}
        self.arming: set[Watcher] = set()
        self._is_arming_later = False

    async def open(self, path: str, *, recursive: bool, include_entry: bool) -> Watcher:
        """Watch the directory `path`; events from now on are told. The caller closes it.

        Raises: ConnectError `resource_exhausted` (too many watchers or directories), or of the path.
        """
        if len(self._watchers) >= MAX_WATCHERS:
            raise ConnectError("resource_exhausted", f"{MAX_WATCHERS} directories are being watched; stop some")
        # What happened before this one came is not for it.
        self.catch_up()
        watcher = Watcher(self, path, recursive=recursive, include_entry=include_entry)
        try:
            if self._kernel is None:
                self._kernel = Inotify()
                asyncio.get_running_loop().add_reader(self._kernel.descriptor, self._read_some)
            self._watchers.add(watcher)
            watcher.to_arm.append(("", False))
            watcher.arm_next(self._kernel)
            self.arming.add(watcher)
            self._arm_some()
            await watcher.is_armed.wait()
            if watcher.error:
                raise watcher.error
        except OSError as exc:
            watcher.close()
            if exc.filename == "inotify" or inotify.is_exhausted(exc):
                raise _too_many(exc) from exc
            raise connect_error_of(exc, f"cannot watch {path}") from exc
        except BaseException:
            watcher.close()
            raise
        return watcher

    def catch_up(self) -> None:
        """Take in everything that has happened so far, so that what is done next comes after it."""
        for _ in range(CATCH_UP_READS):
            if self._kernel is None or not self._read_slice():
                break

    def follow(self, watcher: Watcher, watch: int, prefix: str) -> None:
        """Raises OSError (ENOSPC) when too many directories are watched."""
        if watch not in self._followers and len(self._followers) >= MAX_DIRECTORIES:
            if self._kernel:
                self._kernel.remove(watch)
            raise OSError(ENOSPC, f"more than {MAX_DIRECTORIES} directories")
        self._followers.setdefault(watch, set()).add(watcher)
        watcher.dirs[watch] = prefix

    def unfollow(self, watcher: Watcher, watches: list[int]) -> None:
        for watch in watches:
            watcher.dirs.pop(watch, None)
            followers = self._followers.get(watch)
            if followers is None:
                continue
            followers.discard(watcher)
            if not followers:
                del self._followers[watch]
                if self._kernel:
                    self._kernel.remove(watch)

    def leave(self, watcher: Watcher) -> None:
        """Tell `watcher` nothing more. The undo of `open`, and harmless the second time."""
        watcher.is_over = True
        watcher.is_armed.set()
        watcher.to_arm.clear()
        self.arming.discard(watcher)
        self._watchers.discard(watcher)
        if self._watchers:
            self.unfollow(watcher, list(watcher.dirs))
            return
        self._followers.clear()
        watcher.dirs.clear()
        if self._kernel:
            # Its queue and its watches go with it, which is cheaper than one by one.
            asyncio.get_running_loop().remove_reader(self._kernel.descriptor)
            self._kernel.close()
            self._kernel = None

    def _read_some(self) -> None:
        # The second time usually finds nothing, and so learns that it was all.
        if self._read_slice():
            self._read_slice()

    def _read_slice(self) -> bool:
        """Take in some events; False when there were none."""
        events = self._kernel.read() if self._kernel else []
        for watch, mask, cookie, name in events:
            if mask & inotify.QUEUE_OVERFLOW:
                for watcher in tuple(self._watchers):
                    watcher.fail(_lost("they came faster than the kernel keeps them"))
            for watcher in tuple(self._followers.get(watch, ())):
                watcher.handle(watch, mask, cookie, name)
            if mask & inotify.IGNORED:
                for watcher in self._followers.pop(watch, set()):
                    watcher.dirs.pop(watch, None)
            if self.arming:
                self._arm_some()
        if self.weight_bytes > ALL_WAITING_BYTES:
            max(self._watchers, key=lambda watcher: watcher.weight_bytes).fail(_lost("they were not read in time"))
        if not events and not self.arming:
            for watcher in self._watchers:
                watcher.settle()
        return bool(events)

    def _arm_some(self) -> None:
        """Watch up to ARM_COUNT of the directories that wait for it; the rest when others have had their turn."""
        left = ARM_COUNT
        while self.arming and self._kernel:
            watcher = next(iter(self.arming))
            if not watcher.to_arm:
                self.arming.discard(watcher)
                watcher.is_armed.set()
                continue
            if not left:
                if not self._is_arming_later:
                    self._is_arming_later = True
                    asyncio.get_running_loop().call_soon(self._arm_more)
                return
            left -= 1
            try:
                watcher.arm_next(self._kernel)
            except OSError as exc:
                watcher.fail(_too_many(exc))
        asyncio.get_running_loop().call_soon(self._read_some)

    def _arm_more(self) -> None:
        self._is_arming_later = False
        self._arm_some()


def _has_content(entry: "os.DirEntry[str]") -> bool:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _lost(why: str) -> ConnectError:
    return ConnectError("data_loss", f"file events were lost: {why}; list the directory and watch it again")


def _too_many(exc: OSError) -> ConnectError:
    return ConnectError("resource_exhausted", f"no more directories can be watched: {(exc.strerror or '').lower()}")


def _set(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
