"""Which nodes cannot take a sandbox, and why."""

from firebrick.model.node import NodeState, NodeView
from firebrick.placement.fit import PlacementRequest, Room, lacks


def room_of(node: NodeView) -> Room:
    return Room(
        millicpu=node.millicpu,
        memory_mib=node.memory_mib,
        disk_mib=node.disk_mib,
        reserved_millicpu=node.reserved_millicpu,
        reserved_memory_mib=node.reserved_memory_mib,
        reserved_disk_mib=node.reserved_disk_mib,
    )


def reject_reason(request: PlacementRequest, node: NodeView) -> str | None:
    """Why `node` cannot take `request`, as a phrase for people; None when it can."""
    if node.state is not NodeState.READY:
        return f"it is {node.state.value}"
    if not node.runtimes:
        return "it has no runtime that works"
    if request.runtime is not None and request.runtime not in node.runtimes:
        return f"it has no runtime '{request.runtime.value}'"
    if request.node_id not in (None, node.node_id):
        return "it does not have the snapshot"
    if request.build_id not in node.builds:
        return "it does not have the template's build"
    if node.free_slot_count <= 0:
        return "its network slots are all taken"
    return lacks(request.limits, room_of(node))
