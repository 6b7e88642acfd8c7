"""Compare what each node runs with what the store says, both ways.

A running row whose node answers but does not have the sandbox has ended: its machine died while nobody listened, or
the host was rebooted. A sandbox on a node that no living row stands for is an orphan and is killed, after it was seen
in two rounds. A node that does not answer proves nothing: its sandboxes live on.
"""

import asyncio
from collections.abc import Mapping

from firebrick.control.background.watch_exits import WatchExits
from firebrick.control.platform import Platform
from firebrick.control.workflows.sandbox_kill import begin_end
from firebrick.lifecycle.end_reasons import end_reason_of
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError, Unavailable
from firebrick.model.ids import NodeId, SandboxId
from firebrick.model.sandbox import EndReason, Sandbox, SandboxState
from firebrick.store.sandboxes import sandbox_list_in_states, sandbox_list_states

ROUND_S = 2.0
UNHEALTHY_ROUND_S = 0.5
"""A node that is away is looked for more often, so that creates work again soon after it is back."""
LIST_TIMEOUT_S = 5.0
LOST_DETAIL = "Its node no longer has it: the machine was restarted or the sandbox's process disappeared."

log = get_log("control.sync")


class SyncNodes:
    def __init__(self, platform: Platform, exits: Mapping[NodeId, WatchExits]) -> None:
        self._platform = platform
        self._exits = exits
        self._orphans: dict[NodeId, frozenset[SandboxId]] = {}

    async def round(self) -> float:
        nodes = self._platform.nodes
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._sync_one(node_id)) for node_id in nodes.clients]
        return ROUND_S if all(task.result() for task in tasks) else UNHEALTHY_ROUND_S

    async def _sync_one(self, node_id: NodeId) -> bool:
        if not await self._platform.nodes.refresh_one(node_id):
            return False
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                await self._compare(node_id)
        except (Unavailable, TimeoutError):
            return False
        return True

    async def _compare(self, node_id: NodeId) -> None:
        platform = self._platform
        # NOTE: rows are read before the node is asked. A row that runs by then was started by then, so its absence
        # from the answer is an end, not a race with a create.
        async with platform.database.read() as tx:
            running = await sandbox_list_in_states(tx, (SandboxState.RUNNING,))
        listed = {item.sandbox_id: item for item in await platform.nodes.client(node_id).list_sandboxes()}
        for row in running:
            if row.node_id == node_id and row.sandbox_id not in listed:
                await self._end_missing(row)
        # NOTE: and read again after: every listed sandbox had its row before it was started.
        async with platform.database.read() as tx:
            states = await sandbox_list_states(tx, listed)
        orphans = frozenset(item for item in listed if states.get(item, SandboxState.ENDED) is SandboxState.ENDED)
        for sandbox_id in orphans & self._orphans.get(node_id, frozenset()):
            await self._kill_orphan(node_id, sandbox_id)
        self._orphans[node_id] = orphans

    async def _end_missing(self, row: Sandbox) -> None:
        assert row.node_id is not None
        heard = None if row.machine_id is None else self._exits[row.node_id].exit_of(row.machine_id)
        reason = EndReason.NODE_LOST if heard is None else end_reason_of(heard.cause)
        detail = LOST_DETAIL if heard is None else heard.detail
        if await begin_end(
            self._platform, row.sandbox_id, reason, detail=detail, machine_id=row.machine_id
        ):  # fmt: skip
            log.warning("sandbox.missing", sandbox_id=row.sandbox_id, reason=reason.value)

    async def _kill_orphan(self, node_id: NodeId, sandbox_id: SandboxId) -> None:
        log.warning("sandbox.orphan_killed", sandbox_id=sandbox_id, node_id=node_id)
        try:
            await self._platform.nodes.client(node_id).kill_sandbox(sandbox_id)
        except FirebrickError as exc:
            # It is seen again in the next round.
            log.warning("sandbox.orphan_stays", sandbox_id=sandbox_id, error=exc.message)
