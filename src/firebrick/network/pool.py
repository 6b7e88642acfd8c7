"""The native slot pool: who has which slot, and one task that makes the others ready.

    missing ──make──▶ ready ──acquire──▶ taken ──release──▶ missing

`acquire` and `release` only move an index between sets, so they cost nothing; the keeper task removes and makes
slots behind. All that must survive our process is in the kernel and in `marks`; this object is a view of it.
"""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from time import perf_counter
from typing import Any

from firebrick.linux.netns import in_own_thread
from firebrick.log import get_log
from firebrick.model.egress import Egress
from firebrick.model.errors import Invalid, NoCapacity
from firebrick.network.base import NetworkFailed, Refusal, Slot
from firebrick.network.forwarding import Forwarding
from firebrick.network.layout import Layout
from firebrick.network.maker import SlotMaker
from firebrick.network.marks import Marks
from firebrick.network.name_filter.decision import Rules
from firebrick.network.name_filter.keeper import FilterKeeper, FilterSettings
from firebrick.network.rules import CLOSED

ACQUIRE_WAIT_S = 5.0
RETRY_FIRST_S, RETRY_LONGEST_S = 0.05, 5.0
LISTEN_TRIES_COUNT, LISTEN_RETRY_S = 20, 0.1
"""A name filter that an earlier process of ours started ends with it, but not in the same moment."""
MAKE_AHEAD_COUNT = 16
"""Slots made before the keeper looks again for released ones."""


def default_size(memory_bytes: int) -> int:
    """Four slots for each GiB of memory, at least 8 and at most 64."""
    return min(64, max(8, 4 * (memory_bytes >> 30)))


class NativeSlotPool:
    """A `SlotPool` of kernel namespaces. One per instance and machine; needs root."""

    def __init__(
        self,
        *,
        instance: str,
        prefix: IPv4Network,
        size: int,
        name_servers: Sequence[IPv4Address] = (),
        patience: float = 1.0,
        log: Any = None,
        at_step_for_test_purposes_only: Callable[[str], None] | None = None,
    ) -> None:
        """Do nothing yet; `open` does. `size` 0 fits the pool to the machine's memory. `name_servers` are those that
        guests are told and that allowed names are looked up by. `patience` is what the wait for a slot that is
        being made is multiplied by. Raises Invalid."""
        self._layout = Layout(instance=instance, prefix=prefix)
        self.size = size or default_size(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        if not 0 < self.size <= self._layout.capacity_count:
            raise Invalid(
                f"Setting 'slot_count' is {self.size}, but {prefix} has addresses for 1 to "
                f"{self._layout.capacity_count} slots. Change 'slot_count' or 'network_prefix'."
            )
        self._acquire_wait_s = ACQUIRE_WAIT_S * patience
        self._log = log or get_log("network")
        self._marks = Marks(instance)
        self._name_servers = tuple(name_servers)
        self._maker = SlotMaker(
            self._layout,
            self._marks,
            name_servers=self._name_servers,
            at_step_for_test_purposes_only=at_step_for_test_purposes_only,
        )
        settings = FilterSettings(
            instance=instance,
            user_id=self._layout.filter_uid,
            closed=tuple(IPv4Network(network) for network in (*CLOSED, str(prefix))),
            name_servers=self._name_servers,
        )
        self._filter = FilterKeeper(settings, self._marks, self._listen, self._log)
        self._forwarding = Forwarding(self._layout, self._marks, self._log)
        self._ready: deque[int] = deque()
        self._taken: set[int] = set()
        self._missing: set[int] = set()
        self._leftover: set[int] = set()
        self._in_work: set[int] = set()
        self._waiters: deque[asyncio.Future[int]] = deque()
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._last_failure = ""

    def on_refused(self, tell: Callable[[Refusal], None]) -> None:
        self._filter.tell = tell

    async def open(self, in_use: frozenset[int]) -> None:
        """Load the host's rules, take over what is whole, and start filling.

        Raises:
            Invalid: the prefix is in use by somebody else.
            NetworkFailed: nftables, namespaces or forwarding do not work here.
        """
        indices = frozenset(range(self.size)) | in_use
        survey = await in_own_thread(self._maker.survey)
        await in_own_thread(lambda: self._prepare_host(indices))
        self._taken = set(in_use)
        for index in in_use:
            self._marks.take_ready(index)
        await self._filter.adopt(in_use)
        whole = sorted(survey.whole & indices - in_use)
        self._ready.extend(whole)
        self._leftover = set(survey.present - in_use) - set(whole)
        self._missing = set(range(self.size)) - in_use - set(whole)
        self._work.set()
        self._tasks = [asyncio.create_task(self._keep_full()), asyncio.create_task(self._forwarding.watch())]
        self._log.info(
            "network.opened", size=self.size, adopted=len(whole), in_use=len(in_use), leftover=len(self._leftover)
        )

    def _prepare_host(self, indices: frozenset[int]) -> None:
        self._maker.prepare_host(indices, self._marks.forwarding())
        try:
            guarded = self._forwarding.adjust()
        except OSError as exc:
            raise NetworkFailed("Forwarding could not be turned on.", detail=str(exc)) from exc
        self._maker.prepare_host(indices, guarded)

    async def acquire(self) -> Slot:
        """Take a ready slot.

        Raises: NoCapacity at once when all slots are taken, or after ACQUIRE_WAIT_S when none gets ready.
        Cancel: a slot that was just given goes back.
        """
        if not self._ready or self._waiters:
            index = await self._wait_ready()
        else:
            index = self._ready.popleft()
        self._taken.add(index)
        try:
            # NOTE: before anyone uses it: after a crash it is then made anew, whatever was begun in it.
            self._marks.take_ready(index)
        except OSError as exc:
            self._drop(index)
            raise NetworkFailed(f"Network slot {index} could not be taken.", detail=str(exc)) from exc
        return self._layout.slot(index)

    async def _wait_ready(self) -> int:
        if not (self._missing or self._in_work or self._ready):
            raise self._no_capacity("all are taken")
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._acquire_wait_s):
                return await waiter
        except TimeoutError as exc:
            self._give_back(waiter)
            raise self._no_capacity(f"none got ready within {self._acquire_wait_s:g} s") from exc
        except asyncio.CancelledError:
            self._give_back(waiter)
            raise

    def _give_back(self, waiter: asyncio.Future[int]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if waiter.done() and not waiter.cancelled():
            self._put_ready(waiter.result())

    def _no_capacity(self, why: str) -> NoCapacity:
        numbers = f"{self.size} slots, {len(self._taken)} taken, {len(self._ready)} ready"
        return NoCapacity(
            f"No network slot is free on this machine: {why} ({numbers}). Try again, or raise 'slot_count'.",
            detail=self._last_failure,
        )

    async def release(self, slot: Slot) -> None:
        self._drop(slot.index)

    def _drop(self, index: int) -> None:
        if index not in self._taken:
            return
        self._taken.discard(index)
        self._leftover.add(index)
        if index < self.size:
            self._missing.add(index)
        self._work.set()

    def slot(self, index: int) -> Slot:
        return self._layout.slot(index)

    async def restrict(self, slot: Slot, egress: Egress) -> None:
        """Undone by `release`, which makes the slot anew. Idempotent. Raises NetworkFailed."""
        if egress.default_dns:
            egress = replace(egress, dns=(*egress.dns, *self._name_servers))
        # NOTE: once asked, the filter is told of every change: what it holds open may be allowed no longer.
        if egress.names or self._filter.has(slot.index):
            rules = Rules(names=egress.names, allow=egress.allow, deny=egress.deny)
            await self._filter.put(slot.index, rules)
        await in_own_thread(lambda: self._maker.restrict(slot.index, egress))

    async def _listen(self, index: int) -> socket.socket:
        for _ in range(LISTEN_TRIES_COUNT):
            try:
                return await in_own_thread(lambda: self._maker.listen(index))
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
            await asyncio.sleep(LISTEN_RETRY_S)
        return await in_own_thread(lambda: self._maker.listen(index))

    @property
    def free_count(self) -> int:
        return len(self._ready)

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._filter.close()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(self._no_capacity("the node agent is closing"))

    async def destroy_all(self) -> None:
        """Remove all that bears our instance's name, whoever made it; also without an earlier `open`.

        Raises NetworkFailed; then what is left is named by the next survey and may be removed again.
        """
        await self.close()
        await in_own_thread(self._destroy_all)
        self._ready.clear()
        self._taken.clear()
        self._missing.clear()
        self._leftover.clear()
        self._log.info("network.destroyed")

    def _destroy_all(self) -> None:
        self._maker.unmake(self._maker.survey().present)
        self._maker.remove_host_rules()
        if self._marks.forwarding():
            self._forwarding.restore()
        self._marks.remove()

    async def _keep_full(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._remove_leftovers()
                await self._make_missing()
                pause_s = RETRY_FIRST_S
            except Exception as exc:  # noqa: BLE001 - the root of the task: a pool that stops filling is an outage
                self._last_failure = f"{exc} {getattr(exc, 'detail', '')}".strip()
                self._log.warning("network.slot_failed", error=self._last_failure, kind=type(exc).__name__)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_LONGEST_S)
                self._work.set()

    async def _remove_leftovers(self) -> None:
        batch = frozenset(self._leftover)
        if not batch:
            return
        start = perf_counter()
        self._in_work |= batch
        try:
            for index in batch:
                # NOTE: its sockets would keep the namespace.
                await self._filter.drop(index)
            await in_own_thread(lambda: self._maker.unmake(batch))
            self._leftover -= batch
        finally:
            self._in_work -= batch
        self._log.debug("network.removed", slots=len(batch), duration_ms=round((perf_counter() - start) * 1000, 1))

    async def _make_missing(self) -> None:
        for index in sorted(self._missing - self._leftover)[:MAKE_AHEAD_COUNT]:
            self._missing.discard(index)
            self._in_work.add(index)
            try:
                await in_own_thread(lambda index=index: self._maker.make(index))  # type: ignore[misc]
            except BaseException:
                # Whatever stopped it: the next round removes the pieces and begins again.
                self._leftover.add(index)
                self._missing.add(index)
                raise
            finally:
                self._in_work.discard(index)
            self._put_ready(index)
        if self._missing or self._leftover:
            self._work.set()

    def _put_ready(self, index: int) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(index)
                return
        self._ready.append(index)
