"""What a node holds against what the store says of a sandbox: which of the two is mended, and how. Pure.

    row \\ node     runs          paused              kept          absent
    (none), ended  kill          kill                discard*      forget*
    running        -             row -> paused       row -> paused row -> ending
    paused         pause again   row takes memory    row: no memory row -> ending

`*` depends on whether the disk lies in the grace bin: then it may be kept, and its absence is noted. A row on its way
between two states is somebody's work, or `finish_sandboxes` takes it up: nothing is concluded from it here.
"""

from enum import StrEnum

from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.rpc.node_api import NodeSandbox, NodeSandboxState


class Mend(StrEnum):
    NOTHING = "nothing"
    KILL = "kill"
    DISCARD = "discard"
    FORGET_KEPT = "forget_kept"
    END_LOST = "end_lost"
    ROW_PAUSED = "row_paused"
    PAUSE_AGAIN = "pause_again"


def mend_of(row: Sandbox | None, listed: NodeSandbox | None) -> Mend:
    """`listed` None: the node answered and does not have it. The table is in the module's text."""
    if row is None or row.state is SandboxState.ENDED:
        return _ended(row, listed)
    if row.state is SandboxState.RUNNING:
        if listed is None:
            return Mend.END_LOST
        return Mend.NOTHING if listed.state is NodeSandboxState.RUNNING else Mend.ROW_PAUSED
    if row.state is SandboxState.PAUSED:
        if listed is None:
            return Mend.END_LOST
        if listed.state is NodeSandboxState.RUNNING:
            return Mend.PAUSE_AGAIN
        return Mend.NOTHING if bool(row.keeps_memory) == listed.keeps_memory else Mend.ROW_PAUSED
    return Mend.NOTHING


def _ended(row: Sandbox | None, listed: NodeSandbox | None) -> Mend:
    is_in_bin = row is not None and row.recoverable_until is not None
    if listed is None:
        return Mend.FORGET_KEPT if is_in_bin else Mend.NOTHING
    if listed.state is not NodeSandboxState.KEPT:
        return Mend.KILL
    return Mend.NOTHING if is_in_bin else Mend.DISCARD
