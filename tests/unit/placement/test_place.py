"""Placement is a pure decision with reasons."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.model.ids import BuildId, NodeId
from firebrick.model.machine import Limits, RuntimeName
from firebrick.model.node import NodeState, NodeView
from firebrick.placement.filter import reject_reason, room_of
from firebrick.placement.fit import PlacementRequest, lacks
from firebrick.placement.place import NoNodeFits, place
from firebrick.placement.score import SCORE_MAX, score

LIMITS = Limits(millicpu=1000, memory_mib=1024, disk_mib=100, process_count=10)
BUILD = BuildId("bld_1")
REQUEST = PlacementRequest(limits=LIMITS, build_id=BUILD)
NODE = NodeView(
    node_id=NodeId("a"), state=NodeState.READY, runtimes=(RuntimeName.GVISOR,), builds=frozenset({BUILD}),
    millicpu=8000, memory_mib=8192, disk_mib=1000, reserved_millicpu=0, reserved_memory_mib=0, reserved_disk_mib=0,
    starting_count=0, free_slot_count=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": NodeState.UNHEALTHY}, "unhealthy"),
        ({"state": NodeState.DRAINING}, "draining"),
        ({"runtimes": ()}, "no runtime"),
        ({"builds": frozenset()}, "build"),
        ({"free_slot_count": 0}, "slots"),
        ({"reserved_millicpu": 7001}, "CPU is full: 1000 millicpu asked, 999 left"),
        ({"reserved_memory_mib": 8192}, "memory is full"),
        ({"reserved_disk_mib": 901}, "disk is full"),
    ],
)
def test_each_rejection_has_its_reason(change: dict[str, object], words: str) -> None:
    """A node that cannot take the sandbox says which condition fails."""
    reason = reject_reason(REQUEST, replace(NODE, **change))  # type: ignore[arg-type]
    assert reason is not None
    assert words in reason


def test_a_wanted_runtime_must_be_there() -> None:
    """A request for one runtime is never placed on a node that has only others."""
    assert reject_reason(replace(REQUEST, runtime=RuntimeName.GVISOR), NODE) is None
    assert reject_reason(replace(REQUEST, runtime=RuntimeName.CONTAINER), NODE) is not None


def test_the_last_piece_fits() -> None:
    """A request that leaves exactly nothing free is accepted."""
    assert reject_reason(REQUEST, replace(NODE, reserved_millicpu=7000, reserved_memory_mib=7168)) is None


def test_fuller_nodes_are_preferred() -> None:
    """Of nodes that fit, the fuller one is taken; of equals, the one with fewer starts."""
    full = replace(NODE, node_id=NodeId("full"), reserved_millicpu=4000, reserved_memory_mib=4096)
    busy = replace(full, node_id=NodeId("busy"), starting_count=3)
    assert place(REQUEST, [NODE, busy, full], seed=1).node_id == "full"


def test_nothing_fits_names_reasons_not_nodes() -> None:
    """The caller reads distinct reasons; the operator reads which node has which."""
    nodes = [replace(NODE, free_slot_count=0), replace(NODE, node_id=NodeId("secret"), state=NodeState.LOST)]
    with pytest.raises(NoNodeFits) as caught:
        place(REQUEST, nodes, seed=1)
    assert "slots" in caught.value.message
    assert "secret" not in caught.value.message
    assert "secret: it is lost" in caught.value.detail
    assert caught.value.retryable


def test_no_nodes_at_all() -> None:
    """Without any node the message says so."""
    with pytest.raises(NoNodeFits, match="there is no node"):
        place(REQUEST, [], seed=1)


counts = st.integers(0, 20_000)
views = st.builds(
    lambda name, cpu, memory, disk, slots, starting: replace(
        NODE, node_id=NodeId(name), reserved_millicpu=cpu, reserved_memory_mib=memory, reserved_disk_mib=disk,
        free_slot_count=slots, starting_count=starting,
    ),
    st.text("abc", min_size=1), counts, counts, st.integers(0, 2000), st.integers(0, 2), st.integers(0, 3),
)  # fmt: skip


@given(st.lists(views, unique_by=lambda view: view.node_id), st.integers(0, 2**64 - 1))
def test_a_placement_always_fits_and_repeats(nodes: list[NodeView], seed: int) -> None:
    """The chosen node passes the re-check, all others that cannot have reasons, and the order does not matter."""
    by_id = {node.node_id: node for node in nodes}
    try:
        placement = place(REQUEST, nodes, seed=seed)
    except NoNodeFits:
        assert all(reject_reason(REQUEST, node) is not None for node in nodes)
        return
    chosen = by_id[placement.node_id]
    assert lacks(LIMITS, room_of(chosen)) is None
    assert 0 <= placement.score <= SCORE_MAX
    assert placement.score == max(score(LIMITS, node) for node in nodes if node.node_id not in placement.rejected)
    assert place(REQUEST, nodes[::-1], seed=seed) == placement
