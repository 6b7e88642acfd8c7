"""The node agent's side of the name filter: the process, and what it is told of each slot.

Listeners and rules are kept here, and the rules beside in a file, so that a filter that dies is started again with all
of them. While it is away nobody accepts: what a guest opens waits at the listener, and nothing passes.
It is started with the first slot that has names, so that who uses none pays for none.
"""

import asyncio
import json
import os
import socket
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from firebrick.linux.process import start_child
from firebrick.network.base import NetworkFailed, Refusal
from firebrick.network.marks import Marks
from firebrick.network.name_filter.decision import Rules, encode_rules
from firebrick.network.name_filter.process import MESSAGE_BYTES

TOLD_S = 15.0
"""From the order to the answer, a start of the process among it."""
RETRY_FIRST_S, RETRY_LONGEST_S = 0.1, 5.0
END_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSettings:
    instance: str
    user_id: int
    closed: tuple[IPv4Network, ...]
    name_servers: tuple[IPv4Address, ...]


class _Gone(Exception):
    """The filter ended before it answered."""


@dataclass(slots=True)
class _Link:
    """One life of the process: our end of its socket, and the orders it has not answered."""

    socket: socket.socket
    last_id: int = 0
    waiting: dict[int, "asyncio.Future[None]"] = field(default_factory=dict)

    async def order(self, what: dict[str, Any], descriptors: list[int]) -> None:
        """Return when it is done. Raises _Gone."""
        self.last_id = number = self.last_id + 1
        answer = self.waiting[number] = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self.socket, [json.dumps({"id": number} | what).encode()], descriptors)
        except OSError as exc:
            del self.waiting[number]
            raise _Gone from exc
        try:
            await answer
        finally:
            self.waiting.pop(number, None)


class FilterKeeper:
    """`listen` opens the listening socket of a slot; whoever calls `put` closes with `drop` or `close`."""

    def __init__(
        self, settings: FilterSettings, marks: Marks, listen: Callable[[int], Awaitable[socket.socket]], log: Any
    ) -> None:
        self._settings = settings
        self._marks = marks
        self._listen = listen
        self._log = log
        self._listeners: dict[int, socket.socket] = {}
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._link: _Link | None = None
        self._linked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.tell: Callable[[Refusal], None] = lambda refusal: None

    def has(self, index: int) -> bool:
        return index in self._listeners

    async def adopt(self, indices: frozenset[int]) -> None:
        """Go on for the slots of living machines that an earlier process of ours had rules for.

        One that fails stays cut off: its guest reaches nothing by name until its rules are set anew.
        """
        for index in sorted(self._marks.named()):
            if index not in indices:
                self._marks.take_names(index)
                continue
            try:
                self._listeners[index] = await self._listen(index)
            except OSError as exc:
                self._log.error("network.names_lost", slot=index, error=str(exc))
        if self._listeners:
            self._start()

    async def put(self, index: int, rules: Rules) -> None:
        """The filter goes by these rules when this returns, for open connections too. Raises NetworkFailed."""
        async with self._locks[index]:
            try:
                if index not in self._listeners:
                    self._listeners[index] = await self._listen(index)
                # NOTE: before the filter has them: whatever ends meanwhile, the next life begins with the new ones.
                self._marks.put_names(index, encode_rules(rules))
                self._start()
                async with asyncio.timeout(TOLD_S):
                    await self._until_told(index)
            except (OSError, TimeoutError) as exc:
                raise NetworkFailed(f"The rules by name of slot {index} could not be set.", detail=repr(exc)) from exc

    async def _until_told(self, index: int) -> None:
        while True:
            await self._linked.wait()
            if self._link is None:
                continue
            try:
                return await self._set(self._link, index)
            except _Gone:
                # The next life is told of all.
                self._linked.clear()

    async def _set(self, link: _Link, index: int) -> None:
        try:
            rules = self._marks.open_names(index)
        except FileNotFoundError:
            # Dropped meanwhile.
            return
        try:
            await link.order({"op": "set", "slot": index}, [self._listeners[index].fileno(), rules])
        finally:
            os.close(rules)

    async def drop(self, index: int) -> None:
        """Cut what is open and stop listening. Idempotent."""
        async with self._locks[index]:
            self._marks.take_names(index)
            listener = self._listeners.pop(index, None)
            if listener is None:
                return
            listener.close()
            if self._link is not None:
                with suppress(_Gone, TimeoutError):
                    async with asyncio.timeout(TOLD_S):
                        await self._link.order({"op": "drop", "slot": index}, [])

    async def close(self) -> None:
        """End the process; the rules stay for the next one."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self._live()
                pause_s = RETRY_FIRST_S
            except Exception as exc:  # noqa: BLE001 - the root of the task: without it no name is reachable
                self._log.error("network.filter_failed", error=repr(exc))
                pause_s = min(2 * pause_s, RETRY_LONGEST_S)
            await asyncio.sleep(pause_s)

    async def _live(self) -> None:
        """One life of the process, from its start to its end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as stack:
            stack.enter_context(ours)
            with theirs:
                process = await start_child(self._argv(theirs.fileno()), pass_descriptors=(theirs.fileno(),))
            try:
                await self._talk(ours)
            finally:
                ours.close()
                await _ended(process)
        self._log.warning("network.filter_ended", exit_code=process.returncode)

    def _argv(self, descriptor: int) -> list[str]:
        settings = {
            "user_id": self._settings.user_id,
            "closed": [str(network) for network in self._settings.closed],
            "name_servers": [str(address) for address in self._settings.name_servers],
        }
        module = "firebrick.main.name_filter"
        return [sys.executable, "-m", module, self._settings.instance, str(descriptor), json.dumps(settings)]

    async def _talk(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        link = _Link(ours)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(ours, lambda: None if self._hear(link) or ended.done() else ended.set_result(None))
        telling = asyncio.ensure_future(self._tell_all(link))
        try:
            await asyncio.wait((telling, ended), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await telling
                self._link = link
                self._linked.set()
                self._log.info("network.filter_ready", slots=len(self._listeners))
                await ended
        finally:
            telling.cancel()
            await asyncio.wait((telling,))
            if not telling.cancelled():
                telling.exception()
            self._link = None
            self._linked.clear()
            loop.remove_reader(ours)
            for answer in link.waiting.values():
                answer.set_exception(_Gone())

    async def _tell_all(self, link: _Link) -> None:
        told: set[int] = set()
        # A slot may come while others are told of.
        while rest := set(self._listeners) & self._marks.named() - told:
            for index in rest:
                told.add(index)
                if index in self._listeners:
                    await self._set(link, index)

    def _hear(self, link: _Link) -> bool:
        """Take one message; False when there will be none any more."""
        try:
            data = link.socket.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        message = json.loads(data)
        if "done" in message:
            answer = link.waiting.get(message["done"])
            if answer is not None and not answer.done():
                answer.set_result(None)
        else:
            told = message["refused"]
            self.tell(Refusal(
                slot_index=told["slot"], name=told["name"], address=IPv4Address(told["address"]), port=told["port"],
                reason=told["reason"], count=told["count"],
            ))  # fmt: skip
        return True


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Return when it is gone: it ends by itself when we hang up."""
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError) as exc:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
        if isinstance(exc, asyncio.CancelledError):
            raise
