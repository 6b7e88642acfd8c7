"""How good a node is: fuller is better, so that empty nodes stay free for large requests."""

from firebrick.model.machine import Limits
from firebrick.model.node import NodeView

SCORE_MAX = 18.0
"""Nomad's bin-packing scale: 20 - (10**free_cpu + 10**free_memory), so 0 for an empty node and 18 for a full one."""


def score(limits: Limits, node: NodeView) -> float:
    """Score in [0, 18] of `node` as it would be with the sandbox on it."""
    cpu = _free_share(node.millicpu, node.reserved_millicpu + limits.millicpu)
    memory = _free_share(node.memory_mib, node.reserved_memory_mib + limits.memory_mib)
    spread: float = 10.0**cpu + 10.0**memory
    return min(max(20.0 - spread, 0.0), SCORE_MAX)


def _free_share(total: int, used: int) -> float:
    return max(total - used, 0) / total if total > 0 else 0.0
