"""A slot pool without a kernel: loopback addresses and counted places, for tests and simulated nodes."""

from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

from firebrick.model.egress import EVERYWHERE, OPEN, Egress
from firebrick.model.errors import NoCapacity
from firebrick.network.base import Refusal, Slot

LARGEST_SIZE = 65_000
FIRST_ADDRESS = IPv4Address("127.111.0.1")


class SimSlotPool:
    """A `SlotPool` whose addresses are all this machine's loopback; its slots share the host's namespace."""

    def __init__(self, *, size: int = 64) -> None:
        self.size = min(size or 64, LARGEST_SIZE)
        self._ready: deque[int] = deque()
        self._taken: set[int] = set()
        self._egress: dict[int, Egress] = {}
        self._tell: Callable[[Refusal], None] = lambda refusal: None

    def on_refused(self, tell: Callable[[Refusal], None]) -> None:
        self._tell = tell

    def refuse(self, refusal: Refusal) -> None:
        """What a simulated guest was refused."""
        self._tell(refusal)

    async def open(self, in_use: frozenset[int]) -> None:
        self._taken = set(in_use)
        self._ready = deque(index for index in range(self.size) if index not in in_use)

    async def acquire(self) -> Slot:
        if not self._ready:
            raise NoCapacity(
                f"No network slot is free on this machine: all are taken ({self.size} slots, {len(self._taken)} taken, "
                f"0 ready). Try again, or raise 'slot_count'."
            )
        index = self._ready.popleft()
        self._taken.add(index)
        return self.slot(index)

    async def release(self, slot: Slot) -> None:
        if slot.index in self._taken:
            self._taken.discard(slot.index)
            self._egress.pop(slot.index, None)
            if slot.index < self.size:
                self._ready.append(slot.index)

    def slot(self, index: int) -> Slot:
        return Slot(index=index, address=FIRST_ADDRESS + index, netns=Path("/proc/self/ns/net"))

    async def restrict(self, slot: Slot, egress: Egress) -> None:
        self._egress[slot.index] = egress

    def is_denied(self, slot: Slot) -> bool:
        """Whether the internet is closed for this slot: what a simulated guest may ask."""
        return EVERYWHERE in self.egress(slot).deny

    def egress(self, slot: Slot) -> Egress:
        return self._egress.get(slot.index, OPEN)

    @property
    def free_count(self) -> int:
        return len(self._ready)

    async def close(self) -> None:
        """Nothing runs behind a simulated pool."""

    async def destroy_all(self) -> None:
        self._ready.clear()
        self._taken.clear()
        self._egress.clear()
