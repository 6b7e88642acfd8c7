"""Compare what each node holds with what the store says, both ways, and mend what differs (`node_mends`).

A running row whose node answers but does not have the sandbox has ended: its machine died while nobody listened, or
the host was rebooted. Everything else is mended when it was seen in two rounds, on a row that did not change between:
orphans are killed, a sandbox that is paused on its node is so in the store, one that lost its memory becomes disk-only.
A node that does not answer proves nothing: its sandboxes live on.
"""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple, assert_never

from firebrick.control.background.node_mends import Mend, mend_of
from firebrick.control.background.watch_exits import WatchExits
from firebrick.control.platform import Platform
from firebrick.control.routing import publish_paused
from firebrick.control.workflows.grace_bin import discard_kept
from firebrick.control.workflows.sandbox_kill import begin_end
from firebrick.control.workflows.sandbox_pause import paused_event, paused_row
from firebrick.lifecycle.end_reasons import end_reason_of
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError, Unavailable
from firebrick.model.ids import NodeId, SandboxId
from firebrick.model.sandbox import EndReason, Sandbox, SandboxState
from firebrick.rpc.node_api import NodeSandbox, NodeSandboxState, PauseSandbox
from firebrick.store.events import event_insert
from firebrick.store.reservations import reservation_set_saved, reservation_shrink
from firebrick.store.sandboxes import (
    sandbox_fetch_many,
    sandbox_list_bin,
    sandbox_list_in_states,
    sandbox_update_if,
)

ROUND_S = 2.0
UNHEALTHY_ROUND_S = 0.5
"""A node that is away is looked for more often, so that creates work again soon after it is back."""
LIST_TIMEOUT_S = 5.0
MIB = 1 << 20
LOST_DETAIL = "Its node no longer has it: the machine was restarted or the sandbox's process disappeared."

log = get_log("control.sync")


class Suspect(NamedTuple):
    """A difference that was seen. Seen again with an unchanged row, it is mended."""

    sandbox_id: SandboxId
    generation: int
    mend: Mend


class SyncNodes:
    def __init__(self, platform: Platform, exits: Mapping[NodeId, WatchExits]) -> None:
        self._platform = platform
        self._exits = exits
        self._suspects: dict[NodeId, frozenset[Suspect]] = {}
        self._saved_mib: dict[NodeId, dict[SandboxId, int]] = {}

    async def round(self) -> float:
        nodes = self._platform.nodes
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._sync_one(node_id)) for node_id in nodes.clients]
        return ROUND_S if all(task.result() for task in tasks) else UNHEALTHY_ROUND_S

    async def _sync_one(self, node_id: NodeId) -> bool:
        if not await self._platform.nodes.refresh_one(node_id):
            return False
        try:
            async with asyncio.timeout(self._platform.config.patient_s(LIST_TIMEOUT_S)):
                await self._compare(node_id)
        except (Unavailable, TimeoutError):
            return False
        return True

    async def _compare(self, node_id: NodeId) -> None:
        platform = self._platform
        # NOTE: rows are read before the node is asked. A row that runs by then was started by then, so its absence
        # from the answer is an end, not a race with a create.
        async with platform.database.read() as tx:
            before = await sandbox_list_in_states(tx, (SandboxState.RUNNING, SandboxState.PAUSED))
            before += await sandbox_list_bin(tx)
        listed = {item.sandbox_id: item for item in await platform.nodes.client(node_id).list_sandboxes()}
        await self._note_saved(node_id, listed)
        rows = {row.sandbox_id: row for row in before if row.node_id == node_id or row.sandbox_id in listed}
        # NOTE: and the others after: every listed sandbox had its row before it was started.
        others = [sandbox_id for sandbox_id in listed if sandbox_id not in rows]
        if others:
            async with platform.database.read() as tx:
                rows |= await sandbox_fetch_many(tx, others)
        found: dict[Suspect, tuple[Sandbox | None, NodeSandbox | None]] = {}
        for sandbox_id in {**listed, **rows}:
            row, item = rows.get(sandbox_id), listed.get(sandbox_id)
            mend = mend_of(row, item)
            if mend is Mend.END_LOST and row is not None and row.state is SandboxState.RUNNING:
                await self._end_missing(row)
            elif mend is not Mend.NOTHING:
                found[Suspect(sandbox_id, 0 if row is None else row.generation, mend)] = (row, item)
        for suspect in frozenset(found) & self._suspects.get(node_id, frozenset()):
            await self._mend(node_id, suspect, *found[suspect])
        self._suspects[node_id] = frozenset(found)

    async def _note_saved(self, node_id: NodeId, listed: Mapping[SandboxId, NodeSandbox]) -> None:
        """Write down what saved memory takes, where it changed. A pause has no part in it: it may rest at any time
        later, and is never refused for that."""
        now = {sandbox_id: -(-item.saved_bytes // MIB) for sandbox_id, item in listed.items()}
        # NOTE: a resume writes 0. Of one at rest that was not seen before, what an earlier process wrote is not known.
        before = dict.fromkeys((key for key, item in listed.items() if item.state is NodeSandboxState.RUNNING), 0)
        before |= self._saved_mib.get(node_id, {})
        changed = {sandbox_id: mib for sandbox_id, mib in now.items() if before.get(sandbox_id) != mib}
        if changed:
            async with self._platform.database.write() as tx:
                await reservation_set_saved(tx, changed)
        self._saved_mib[node_id] = now

    async def _mend(
        self, node_id: NodeId, suspect: Suspect, row: Sandbox | None, item: NodeSandbox | None
    ) -> None:  # fmt: skip
        if suspect.sandbox_id in self._platform.at_work:
            return
        log.warning("sandbox.mended", sandbox_id=suspect.sandbox_id, node_id=node_id, mend=suspect.mend.value)
        client = self._platform.nodes.client(node_id)
        try:
            match suspect.mend:
                case Mend.KILL:
                    await client.kill_sandbox(suspect.sandbox_id)
                case Mend.DISCARD:
                    await client.discard_sandbox(suspect.sandbox_id)
                case Mend.PAUSE_AGAIN:
                    await client.pause_sandbox(PauseSandbox(sandbox_id=suspect.sandbox_id, keep_memory=True))
                case Mend.END_LOST:
                    await begin_end(
                        self._platform, suspect.sandbox_id, EndReason.NODE_LOST, detail=LOST_DETAIL,
                        generation=suspect.generation,
                    )  # fmt: skip
                case Mend.ROW_PAUSED:
                    if row is not None and item is not None:
                        await self._take_paused(row, item)
                case Mend.FORGET_KEPT:
                    if row is not None:
                        await discard_kept(self._platform, row)
                case Mend.NOTHING:
                    pass
                case _:
                    assert_never(suspect.mend)
        except FirebrickError as exc:
            # It is seen again in the next round.
            log.warning("sandbox.mend_failed", sandbox_id=suspect.sandbox_id, error=exc.message)

    async def _take_paused(self, row: Sandbox, item: NodeSandbox) -> None:
        """Believe the node: it holds the sandbox paused, with or without its memory."""
        now = self._platform.clock.now()
        async with self._platform.database.write() as tx:
            changed = await sandbox_update_if(tx, paused_row(row, keeps_memory=item.keeps_memory, now=now))
            await reservation_shrink(tx, row.sandbox_id)
            await event_insert(tx, paused_event(changed, at=now))
        await publish_paused(self._platform, changed)

    async def _end_missing(self, row: Sandbox) -> None:
        assert row.node_id is not None
        heard = None if row.machine_id is None else self._exits[row.node_id].exit_of(row.machine_id)
        reason = EndReason.NODE_LOST if heard is None else end_reason_of(heard.cause)
        detail = LOST_DETAIL if heard is None else heard.detail
        if await begin_end(
            self._platform, row.sandbox_id, reason, detail=detail, machine_id=row.machine_id, generation=row.generation
        ):  # fmt: skip
            log.warning("sandbox.missing", sandbox_id=row.sandbox_id, reason=reason.value)
