"""What one machine says: its console, and its guest agent's entries, which are asked for now and then."""

import asyncio
from collections.abc import Callable

from firebrick.clock import Clock
from firebrick.guestlink.base import GuestLink, GuestSilent
from firebrick.log import get_log
from firebrick.model.ids import SandboxId
from firebrick.node.guest_log import Console, EndedLogs, LogRing, from_guest
from firebrick.node.machine import Machine
from firebrick.rpc.node_api import LogEntry

PULL_S = 30.0
TIMEOUT_S = 2.0
LAST_TIMEOUT_S = 0.05
"""At a kill: the caller waits for it, and the guest may be stalling."""

log = get_log("node")


class MachineLog:
    """`is_asked` tells whether the guest agent may be asked now; one that stands still is not."""

    def __init__(self, machine: Machine, ended: EndedLogs, clock: Clock, is_asked: Callable[[], bool]) -> None:
        self._machine = machine
        self._ended = ended
        self._clock = clock
        self._is_asked = is_asked
        self._ring = LogRing()
        self._console = Console(machine.console, machine.directory / "console.jsonl", self._ring, clock)
        self._next = 0
        self._lock = asyncio.Lock()

    def restore(self) -> None:
        """Read what an earlier process of ours had heard."""
        self._console.restore()

    async def drain(self) -> None:
        """Follow the console; never returns."""
        await self._console.drain()

    def drain_rest(self) -> None:
        self._console.drain_rest()

    async def follow(self) -> None:
        """Ask the guest agent now and then; never returns."""
        while True:
            await self._clock.sleep(PULL_S)
            await self._pull(TIMEOUT_S)

    async def entries(self) -> tuple[LogEntry, ...]:
        """Everything, as far as it is kept, oldest first."""
        await self._pull(TIMEOUT_S)
        return self._ring.entries()

    def last_words(self) -> str:
        return "\n".join(entry.message for entry in self._ring.entries()[-5:])

    async def pull_last(self) -> None:
        try:
            # NOTE: around the lock too, which a reader's slower pull may hold.
            async with asyncio.timeout(LAST_TIMEOUT_S):
                await self._pull(LAST_TIMEOUT_S)
        except TimeoutError:
            return

    async def save(self, sandbox_id: SandboxId) -> None:
        """Keep it beyond the machine's end."""
        try:
            await asyncio.to_thread(self._ended.save, sandbox_id, self._ring.entries())
        except OSError as exc:
            log.warning("sandbox.log_lost", reason=str(exc))

    async def _pull(self, timeout_s: float) -> None:
        if not self._is_asked():
            return
        link: GuestLink = self._machine.link
        # One at a time: two pulls of the same page would write it twice.
        async with self._lock:
            try:
                entries, self._next = await link.logs(self._next, timeout_s=timeout_s)
            except GuestSilent:
                return
            finally:
                # An idle sandbox holds no descriptor of ours.
                link.close()
            for entry in entries:
                self._ring.append(from_guest(entry))
