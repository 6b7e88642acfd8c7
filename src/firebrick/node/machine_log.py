"""What one machine says: its console, and its guest agent's entries, which are asked for now and then."""

import asyncio
from collections.abc import Callable, Mapping

from firebrick.clock import Clock
from firebrick.guestlink.base import GuestLink, GuestSilent
from firebrick.linux.kernel_log import MemoryKill
from firebrick.log import get_log
from firebrick.model.ids import SandboxId
from firebrick.model.machine import Isolation
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
        self._kill_seq = -1
        self._last_kill = ""
        self._lock = asyncio.Lock()

    def restore(self) -> None:
        """Read what an earlier process of ours had heard."""
        self._console.restore()
        for entry in self._ring.entries():
            if entry.fields.get("source") == "kernel":
                self._remember_kill(int(entry.fields.get("seq", -1)), entry.message)

    def note_kill(self, kill: MemoryKill) -> None:
        """The host's kernel killed a process of this machine for memory. Repetitions are known by their number."""
        if kill.seq <= self._kill_seq:
            return
        fields = {"limit": "memory", "source": "kernel", "seq": str(kill.seq)}
        # NOTE: below a kernel of its own the host's names and ids of processes are not the guest's.
        is_guests = self._machine.record.runtime.isolation in (Isolation.SHARED_KERNEL, Isolation.NONE)
        if is_guests and kill.inside_pid == 1:
            told = "the kernel killed the guest agent (pid 1), and with it all others"
        elif is_guests:
            fields["name"] = kill.name
            if kill.inside_pid is not None:
                fields["pid"] = str(kill.inside_pid)
            told = f"the kernel killed {kill.name}" + (f" (pid {kill.inside_pid})" if kill.inside_pid else "")
        else:
            told = "the host's kernel killed a process that the sandbox's own kernel consists of"
        self._console.note(LogEntry(timestamp=kill.at, level="warn", message=f"out of memory: {told}", fields=fields))
        self._remember_kill(kill.seq, told)

    def _remember_kill(self, seq: int, told: str) -> None:
        self._kill_seq = max(self._kill_seq, seq)
        self._last_kill = told.removeprefix("out of memory: ")

    @property
    def last_kill(self) -> str:
        """What the kernel killed last for memory, as a clause; empty: nothing yet."""
        return self._last_kill

    async def drain(self) -> None:
        """Follow the console; never returns."""
        await self._console.drain()

    def drain_rest(self) -> None:
        self._console.drain_rest()

    async def follow(self) -> None:
        """Ask the guest agent now and then; never returns."""
        while True:
            await self._clock.sleep(PULL_S)
            await self._pull(TIMEOUT_S * self._machine.settings.patience)

    async def entries(self) -> tuple[LogEntry, ...]:
        """Everything, as far as it is kept, oldest first."""
        await self._pull(TIMEOUT_S * self._machine.settings.patience)
        return self._ring.entries()

    def note(self, level: str, message: str, fields: Mapping[str, str]) -> None:
        """A line of our own, of what was done to the sandbox from outside."""
        self._console.note(LogEntry(timestamp=self._clock.now(), level=level, message=message, fields=fields))

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
