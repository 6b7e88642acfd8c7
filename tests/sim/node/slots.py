"""Slots of the simulated host: which are taken is the host's memory, not the agent's."""

from ipaddress import IPv4Address
from pathlib import Path

from firebrick.model.errors import NoCapacity
from firebrick.network.base import Slot


class HostSlots:
    """`SlotPool` whose table outlives agents; `open` sweeps what no living machine uses."""

    def __init__(self, *, size: int) -> None:
        self.size = size
        self.taken: set[int] = set()
        self.denied: set[int] = set()

    async def open(self, in_use: frozenset[int]) -> None:
        self.taken = set(in_use)

    async def acquire(self) -> Slot:
        free = sorted(set(range(self.size)) - self.taken)
        if not free:
            raise NoCapacity(f"All {self.size} slots are taken.")
        self.taken.add(free[0])
        return self.slot(free[0])

    async def release(self, slot: Slot) -> None:
        self.taken.discard(slot.index)
        self.denied.discard(slot.index)

    def slot(self, index: int) -> Slot:
        address = IPv4Address("127.7.0.1") + index
        return Slot(index=index, address=address, netns=Path(f"/sim/slots/{index}"))

    async def deny_internet(self, slot: Slot) -> None:
        self.denied.add(slot.index)

    @property
    def free_count(self) -> int:
        return self.size - len(self.taken)

    async def close(self) -> None:
        return None

    async def destroy_all(self) -> None:
        self.taken.clear()
