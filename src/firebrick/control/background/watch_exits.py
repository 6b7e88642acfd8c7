"""Listen to one node for sandboxes that end by themselves. Lossy: `sync_nodes` finds what is missed here, and asks
this listener for the cause."""

from collections import OrderedDict

from firebrick.control.platform import Platform
from firebrick.control.workflows.sandbox_kill import begin_end
from firebrick.lifecycle.end_reasons import end_reason_of
from firebrick.log import get_log
from firebrick.model.errors import Unavailable
from firebrick.model.ids import MachineId, NodeId
from firebrick.rpc.node_api import SandboxExit

KEPT_COUNT = 1000
RECONNECT_S = 0.5

log = get_log("control.exits")


class WatchExits:
    """One per node. A round lasts as long as the node's stream."""

    def __init__(self, platform: Platform, node_id: NodeId) -> None:
        self._platform = platform
        self._node_id = node_id
        self._recent: OrderedDict[MachineId, SandboxExit] = OrderedDict()

    def exit_of(self, machine_id: MachineId) -> SandboxExit | None:
        """How a machine ended, if it was heard lately."""
        return self._recent.get(machine_id)

    async def round(self) -> float:
        try:
            async for ended in self._platform.nodes.client(self._node_id).watch_exits():
                await self._take(ended)
        except Unavailable:
            # Expected while a node restarts; `sync_nodes` reports its health.
            pass
        # What ended while nobody listened is found by comparing.
        self._platform.signals.nodes.poke()
        return RECONNECT_S

    async def _take(self, ended: SandboxExit) -> None:
        self._recent[ended.machine_id] = ended
        if len(self._recent) > KEPT_COUNT:
            self._recent.popitem(last=False)
        reason = end_reason_of(ended.cause)
        has_begun = await begin_end(
            self._platform, ended.sandbox_id, reason, detail=ended.detail, machine_id=ended.machine_id
        )
        if has_begun:
            log.info(
                "sandbox.exited", sandbox_id=ended.sandbox_id, reason=reason.value, exit_code=ended.exit_code
            )  # fmt: skip
