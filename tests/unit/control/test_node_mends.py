"""What a node holds against what the store says: the whole table."""

from typing import Any

import pytest

from firebrick.control.background.node_mends import Mend, mend_of
from firebrick.model.ids import MachineId
from firebrick.model.machine import RuntimeName
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.rpc.node_api import NodeSandbox, NodeSandboxState
from tests.support.rows import NOW, make_sandbox

S, N = SandboxState, NodeSandboxState


def row(state: SandboxState | None, **changes: Any) -> Sandbox | None:
    return None if state is None else make_sandbox(state=state, **changes)


def listed(state: NodeSandboxState | None, *, keeps_memory: bool = False) -> NodeSandbox | None:
    if state is None:
        return None
    return NodeSandbox(
        sandbox_id=make_sandbox().sandbox_id, machine_id=MachineId("m1"), runtime=RuntimeName.SIM, address="",
        started_at=NOW, from_warm=False, state=state, keeps_memory=keeps_memory,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "on_node", "mend"),
    [
        (None, N.RUNNING, Mend.KILL), (S.ENDED, N.RUNNING, Mend.KILL), (S.ENDED, N.PAUSED, Mend.KILL),
        (None, N.KEPT, Mend.DISCARD), (S.ENDED, N.KEPT, Mend.DISCARD), (S.ENDED, None, Mend.NOTHING),
        (S.RUNNING, N.RUNNING, Mend.NOTHING), (S.RUNNING, None, Mend.END_LOST),
        (S.RUNNING, N.PAUSED, Mend.ROW_PAUSED), (S.RUNNING, N.KEPT, Mend.ROW_PAUSED),
        (S.PAUSED, N.RUNNING, Mend.PAUSE_AGAIN), (S.PAUSED, N.PAUSED, Mend.NOTHING), (S.PAUSED, N.KEPT, Mend.NOTHING),
        (S.PAUSED, None, Mend.END_LOST),
    ],
)  # fmt: skip
def test_every_difference_has_its_mend(state: S | None, on_node: N | None, mend: Mend) -> None:
    """Each pair of row and node gives the table's mend."""
    assert mend_of(row(state), listed(on_node)) is mend


@pytest.mark.parametrize("state", [S.CREATING, S.PAUSING, S.RESUMING, S.ENDING])
@pytest.mark.parametrize("on_node", [*N, None])
def test_nothing_is_concluded_between_two_states(state: S, on_node: N | None) -> None:
    """A row that somebody works at is left to them."""
    assert mend_of(row(state), listed(on_node)) is Mend.NOTHING


def test_memory_that_is_gone_or_kept_is_noted() -> None:
    """A paused row takes over whether its memory is there."""
    assert mend_of(row(S.PAUSED, keeps_memory=True), listed(N.PAUSED)) is Mend.ROW_PAUSED
    assert mend_of(row(S.PAUSED, keeps_memory=True), listed(N.PAUSED, keeps_memory=True)) is Mend.NOTHING


def test_the_grace_bin_is_left_alone() -> None:
    """A kept disk whose time is not over stays; one that vanished is noted; anything else of it is killed."""
    binned = row(S.ENDED, recoverable_until=NOW)
    assert mend_of(binned, listed(N.KEPT)) is Mend.NOTHING
    assert mend_of(binned, None) is Mend.FORGET_KEPT
    assert mend_of(binned, listed(N.RUNNING)) is Mend.KILL
