"""Does a promise of resources fit a node? One function for the choice and for its re-check at commit."""

from dataclasses import dataclass

from firebrick.model.ids import BuildId, NodeId
from firebrick.model.machine import Limits, RuntimeName

DISK_IS_FULL = "disk is full"
"""How `lacks` begins when it is the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """What must be placed. `runtime` None takes whatever the node has; `node_id` allows that node only, because what
    the sandbox starts from lies there."""

    limits: Limits
    build_id: BuildId
    runtime: RuntimeName | None = None
    node_id: NodeId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a node promises at most and what it has promised already."""

    millicpu: int
    memory_mib: int
    disk_mib: int
    reserved_millicpu: int
    reserved_memory_mib: int
    reserved_disk_mib: int


def lacks(limits: Limits, room: Room) -> str | None:
    """The first resource that does not fit, with figures for the caller; None when all fit."""
    wanted = (
        ("CPU", "millicpu", limits.millicpu, room.millicpu - room.reserved_millicpu),
        ("memory", "MiB", limits.memory_mib, room.memory_mib - room.reserved_memory_mib),
        ("disk", "MiB", limits.disk_mib, room.disk_mib - room.reserved_disk_mib),
    )
    for name, unit, asked, free in wanted:
        # A node may promise less than it did (its disk is nearly full): what asks for nothing more still fits.
        if asked and asked > free:
            return f"{name} is full: {asked} {unit} asked, {max(free, 0)} left"
    return None
