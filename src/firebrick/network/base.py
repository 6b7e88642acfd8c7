"""The network seam: slots, made ahead, taken and given back; nothing is created on the create path.

A slot is two network namespaces and the rules between them:

    host ── veth ── slot namespace (NAT, firewall) ── veth/tap ── guest namespace or VM

The guest always sees the same: address INSIDE_ADDRESS, gateway INSIDE_GATEWAY. The slot namespace, which no
guest code can enter, translates to the slot's own address on the host; so the guest can change nothing that
guards it, and one memory snapshot fits every slot.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol

from firebrick.model.egress import Egress
from firebrick.model.errors import Internal

INSIDE_ADDRESS = "169.254.0.21"
INSIDE_GATEWAY = "169.254.0.22"
INSIDE_PREFIX_LENGTH = 30
GUEST_INTERFACE = "eth0"


class NetworkFailed(Internal):
    """A slot could not be made or reset; the message names the slot and the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One place. `address` reaches the guest from the host; `netns` is what a container or runsc joins."""

    index: int
    address: IPv4Address
    netns: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A connection that a slot's rules by name cut. `name` None: it named nothing. `count`: how many like it, since
    the last that was told."""

    slot_index: int
    name: str | None
    address: IPv4Address
    port: int
    reason: str
    count: int


class SlotPool(Protocol):
    def on_refused(self, tell: Callable[[Refusal], None]) -> None:
        """Whom to tell of what rules by name refuse; once, before `open`. A guest cannot make many of them."""
        ...

    async def open(self, in_use: frozenset[int]) -> None:
        """Adopt slots that an earlier process of ours made (`in_use` belong to living machines and are not
        touched), remove what is broken, then fill the pool in the background."""
        ...

    async def acquire(self) -> Slot:
        """Take a ready slot; waits a moment for the refill. Raises NoCapacity when all are taken."""
        ...

    async def release(self, slot: Slot) -> None:
        """Give back after the machine is destroyed: connections are cut, the slot is reset behind and
        becomes ready again, or is replaced. Idempotent."""
        ...

    def slot(self, index: int) -> Slot:
        """The slot of that index, for a machine that is adopted."""
        ...

    async def restrict(self, slot: Slot, egress: Egress) -> None:
        """Say where this guest may connect to until it is released, in place of what was said before, in one step.
        What is open and no longer allowed is cut. Answers to the edge still pass. Idempotent.

        With `egress.names`, connections to ports 80 and 443 that are denied by address go through a process of ours
        that reads whom they ask for. While it is away they do not pass. Raises NetworkFailed: the rules are not set."""
        ...

    @property
    def free_count(self) -> int: ...

    async def close(self) -> None:
        """Stop the refill. Slots stay, for the next process; `destroy_all` is for `firebrick down`."""
        ...

    async def destroy_all(self) -> None:
        """Remove every slot, rule and link that bears our instance's name, and nothing else."""
        ...
