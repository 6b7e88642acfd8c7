"""A node is a machine that runs sandboxes. A node view is what placement may know of one."""

from dataclasses import dataclass
from enum import StrEnum

from firebrick.model.ids import BuildId, NodeId
from firebrick.model.machine import RuntimeName


class NodeState(StrEnum):
    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node at one moment. Capacities are totals; reservations are what is promised already."""

    node_id: NodeId
    state: NodeState
    runtimes: tuple[RuntimeName, ...]
    builds: frozenset[BuildId]
    millicpu: int
    memory_mib: int
    disk_mib: int
    reserved_millicpu: int
    reserved_memory_mib: int
    reserved_disk_mib: int
    starting_count: int
    free_slot_count: int
