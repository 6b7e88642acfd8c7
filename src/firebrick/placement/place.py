"""The choice of a node, with its reasons."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firebrick.model.errors import NoCapacity
from firebrick.model.ids import NodeId
from firebrick.model.node import NodeView
from firebrick.placement.filter import reject_reason
from firebrick.placement.fit import PlacementRequest
from firebrick.placement.score import score


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The decision. `rejected` says for every other node that cannot take the sandbox why not."""

    node_id: NodeId
    score: float
    rejected: Mapping[NodeId, str]


class NoNodeFits(NoCapacity):
    """No node can take the sandbox; `rejected` has a reason for each."""

    def __init__(self, rejected: Mapping[NodeId, str]) -> None:
        self.rejected = dict(rejected)
        # Node names are for operators; callers get the distinct reasons only.
        reasons = sorted(set(self.rejected.values()))
        why = "; ".join(reasons[:3]) if reasons else "there is no node"
        super().__init__(
            f"No node can take the sandbox now: {why}. Kill sandboxes that are not needed or try again.",
            detail=", ".join(f"{node}: {reason}" for node, reason in sorted(self.rejected.items())),
        )


def place(request: PlacementRequest, nodes: Sequence[NodeView], *, seed: int) -> Placement:
    """Choose the node a sandbox will run on.

    Best fit: fill nodes before opening new ones; of equals, the one with fewer starts under way. Called on a
    snapshot that may be stale: `fit.lacks` is checked again when the reservation is written.

    Args:
        request: most the sandbox may use, its build and, if it matters, its runtime.
        nodes: views from one store snapshot, any order; may be empty.
        seed: equal inputs and seed give an equal answer; remaining ties are shuffled by it.

    Raises:
        NoNodeFits: nothing fits; carries `rejected`. Retryable.

    Cost: O(n), no I/O.
    """
    rejected: dict[NodeId, str] = {}
    fitting: list[NodeView] = []
    for node in nodes:
        reason = reject_reason(request, node)
        if reason is None:
            fitting.append(node)
        else:
            rejected[node.node_id] = reason
    if not fitting:
        raise NoNodeFits(rejected)
    best = max(fitting, key=lambda node: (score(request.limits, node), -node.starting_count, _tie(seed, node.node_id)))
    return Placement(node_id=best.node_id, score=score(request.limits, best), rejected=rejected)


def _tie(seed: int, node_id: NodeId) -> bytes:
    return hashlib.blake2b(f"{seed}:{node_id}".encode(), digest_size=8).digest()
