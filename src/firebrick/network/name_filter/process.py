"""The name filter's process: it has a listening socket in each slot with names, and dials for their guests.

It reads what guests send, so it is nobody on this machine: a user of its own without rights, which the host's rules
keep from private addresses and from the host itself. It keeps no state: the node agent hands it, over the socket it
was started with, the listener and the rules of each slot, and it ends when that socket does.

    agent ──▶ {"id": 1, "op": "set", "slot": 3} with two descriptors: the listener, a file of the rules
          ──▶ {"id": 2, "op": "drop", "slot": 3}
          ◀── {"done": 1}        after it is so, for open connections too
          ◀── {"refused": {"slot": 3, "name": "a.test", "address": "1.2.3.4", "port": 443, "reason": "…", "count": 1}}
"""

import array
import asyncio
import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from firebrick.clock import Clock
from firebrick.log import get_log
from firebrick.network.name_filter.decision import Reason, Refuse, Rules, decode_rules
from firebrick.network.name_filter.refusals import Refusals
from firebrick.network.name_filter.resolver import Resolver
from firebrick.network.name_filter.visit import Visit

OPEN_COUNT = 512
"""Connections of one sandbox at the same time."""
MESSAGE_BYTES = 4096
RULES_BYTES = 1 << 20
ACCEPT_PAUSE_S = 0.1

log = get_log("filter")


class SlotFilter:
    """The connections of one slot. `Surroundings` of its visits."""

    def __init__(self, index: int, filter: "NameFilterProcess", listener: socket.socket, rules: Rules) -> None:
        self.index = index
        self.rules = rules
        self.closed = filter.closed
        self._filter = filter
        self._listener = listener
        self._refusals = Refusals()
        self._visits: dict[Visit, asyncio.Task[None]] = {}
        self._accepting = filter.tasks.create_task(self._accept())

    async def resolve(self, name: str) -> list[IPv4Address]:
        return await self._filter.resolver.addresses(name)

    def refused(self, visit: Visit, reason: Reason) -> None:
        self._tell(visit.name, visit.address, visit.port, reason)

    def change(self, rules: Rules) -> None:
        """What they no longer allow is cut when this returns."""
        self.rules = rules
        for visit, task in list(self._visits.items()):
            verdict = visit.judge()
            if visit.is_decided and isinstance(verdict, Refuse):
                self.refused(visit, verdict.reason)
                task.cancel()

    def end(self) -> None:
        self._accepting.cancel()
        for task in self._visits.values():
            task.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        # NOTE: closed here and not by `end`: the loop must have let go of the descriptor before its number is free.
        with self._listener:
            while True:
                try:
                    guest, _ = await loop.sock_accept(self._listener)
                except OSError as exc:
                    # Of descriptors there may be none left; the next moment frees some.
                    log.warning("filter.accept_failed", slot=self.index, reason=exc.strerror)
                    await self._filter.clock.sleep(ACCEPT_PAUSE_S)
                    continue
                self._admit(guest)

    def _admit(self, guest: socket.socket) -> None:
        guest.setblocking(False)
        try:
            visit = Visit(guest, self)
        except OSError:
            # It is gone already.
            guest.close()
            return
        if len(self._visits) >= OPEN_COUNT:
            self.refused(visit, Reason.TOO_MANY)
            guest.close()
            return
        self._visits[visit] = self._filter.tasks.create_task(self._attend(visit))

    async def _attend(self, visit: Visit) -> None:
        try:
            await visit.run()
        except Exception as exc:  # noqa: BLE001 - task root: whatever it is, it ends one connection and no other
            log.error("filter.visit_failed", slot=self.index, kind=type(exc).__name__, reason=str(exc))
        finally:
            self._visits.pop(visit, None)

    def _tell(self, name: str | None, address: IPv4Address, port: int, reason: Reason) -> None:
        key = (name or str(address), port, reason)
        count = self._refusals.note(key, self._filter.clock.monotonic_s())
        if count is not None:
            told = {"slot": self.index, "name": name, "address": str(address), "port": port, "reason": reason}
            self._filter.tell({"refused": told | {"count": count}})


class NameFilterProcess:
    """`run` returns when the node agent is gone."""

    def __init__(
        self, link: socket.socket, *, closed: tuple[IPv4Network, ...], resolver: Resolver, clock: Clock
    ) -> None:
        self.closed = closed
        self.resolver = resolver
        self.clock = clock
        self.tasks = asyncio.TaskGroup()
        self._link = link
        self._slots: dict[int, SlotFilter] = {}

    async def run(self) -> None:
        async with self.tasks:
            while True:
                await _readable(self._link)
                data, descriptors = receive(self._link)
                if not data:
                    break
                self._take(json.loads(data), descriptors)
            for slot in self._slots.values():
                slot.end()

    def _take(self, order: dict[str, Any], descriptors: Sequence[int]) -> None:
        index = int(order["slot"])
        if order["op"] == "set":
            listener, rules = descriptors
            self._set(index, listener, _read_rules(rules))
        elif (slot := self._slots.pop(index, None)) is not None:
            slot.end()
        self.tell({"done": order["id"]})

    def _set(self, index: int, listener: int, rules: Rules) -> None:
        if (slot := self._slots.get(index)) is not None:
            os.close(listener)
            slot.change(rules)
        else:
            self._slots[index] = SlotFilter(index, self, socket.socket(fileno=listener), rules)

    def tell(self, message: dict[str, Any]) -> None:
        # An agent that reads nothing any more will not miss it.
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._link.send(json.dumps(message).encode())


def receive(link: socket.socket) -> tuple[bytes, Sequence[int]]:
    """One message and its descriptors; no bytes: the other side is gone. Raises BlockingIOError, OSError."""
    try:
        data, descriptors, _, _ = socket.recv_fds(link, MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", ()
    return data, array.array("i", descriptors)


def _read_rules(descriptor: int) -> Rules:
    try:
        return decode_rules(os.pread(descriptor, RULES_BYTES, 0).decode())
    finally:
        os.close(descriptor)


async def _readable(link: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(link, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(link)
