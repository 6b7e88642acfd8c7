"""Finish what is half done: sandboxes that are ending, and creates whose process died.

This is the ordinary second half of every kill as well as the repair after a crash: one code path for both.
"""

import asyncio
from datetime import datetime, timedelta

from firebrick.control.platform import Platform
from firebrick.control.workflows.sandbox_create import START_DEADLINE_S
from firebrick.control.workflows.sandbox_kill import begin_end, finish_end
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError
from firebrick.model.ids import SandboxId
from firebrick.model.sandbox import EndReason, Sandbox, SandboxState
from firebrick.store.idempotency import idempotency_delete_of
from firebrick.store.sandboxes import sandbox_list_in_states

ROUND_S = 5.0
RETRY_S = 1.0
CONCURRENCY = 16
CREATE_ABANDONED_S = START_DEADLINE_S + 30.0
"""A row may be `creating` this long and still be somebody's work; beyond it, its process is dead."""

log = get_log("control.finish")


class FinishSandboxes:
    """`born_at` is when this control plane started. If it is the only one (embedded), a create from before that
    moment has lost its process and is ended at once."""

    def __init__(self, platform: Platform, *, born_at: datetime, is_only_one: bool) -> None:
        self._platform = platform
        self._born_at = born_at
        self._is_only_one = is_only_one
        self._limit = asyncio.Semaphore(CONCURRENCY)
        self._waiting: dict[SandboxId, str] = {}

    @property
    def waiting(self) -> dict[SandboxId, str]:
        """Sandboxes that could not be finished in the last round, and why."""
        return dict(self._waiting)

    async def round(self) -> float:
        platform = self._platform
        async with platform.database.read() as tx:
            rows = await sandbox_list_in_states(tx, (SandboxState.CREATING, SandboxState.ENDING))
        self._waiting = {}
        async with asyncio.TaskGroup() as group:
            for row in rows:
                if row.state is SandboxState.ENDING:
                    group.create_task(self._finish(row))
                elif self._is_abandoned(row):
                    group.create_task(self._give_up(row))
        return RETRY_S if self._waiting else ROUND_S

    def _is_abandoned(self, row: Sandbox) -> bool:
        if self._is_only_one and row.created_at < self._born_at:
            return True
        return row.created_at < self._platform.clock.now() - timedelta(seconds=CREATE_ABANDONED_S)

    async def _finish(self, row: Sandbox) -> None:
        async with self._limit:
            try:
                await finish_end(self._platform, row)
            except FirebrickError as exc:
                self._waiting[row.sandbox_id] = exc.message
                log.warning(
                    "sandbox.end_waits", sandbox_id=row.sandbox_id, error=exc.message, detail=exc.detail
                )  # fmt: skip

    async def _give_up(self, row: Sandbox) -> None:
        log.warning("sandbox.create_abandoned", sandbox_id=row.sandbox_id)
        async with self._platform.database.write() as tx:
            await idempotency_delete_of(tx, row.sandbox_id)
        # The poke of `begin_end` brings the next round, which finishes it.
        await begin_end(
            self._platform, row.sandbox_id, EndReason.ERROR, detail="Its creation was interrupted.",
            generation=row.generation,
        )  # fmt: skip
