"""Finish what is half done: sandboxes that are ending, and creates, pauses and resumes whose process died.

This is the ordinary second half of every kill as well as the repair after a crash: one code path for both.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from firebrick.control.platform import Platform
from firebrick.control.workflows.sandbox_create import START_DEADLINE_S
from firebrick.control.workflows.sandbox_kill import begin_end, finish_end
from firebrick.control.workflows.sandbox_pause import finish_pause
from firebrick.control.workflows.sandbox_resume import abandon_resume
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError
from firebrick.model.ids import SandboxId
from firebrick.model.sandbox import EndReason, Sandbox, SandboxState
from firebrick.store.idempotency import idempotency_delete_of
from firebrick.store.sandboxes import sandbox_fetch, sandbox_list_in_states

HALF_WAY = (SandboxState.CREATING, SandboxState.PAUSING, SandboxState.RESUMING, SandboxState.ENDING)
ROUND_S = 5.0
RETRY_S = 1.0
CONCURRENCY = 16
CREATE_ABANDONED_S = START_DEADLINE_S + 30.0
"""A row may be `creating` this long and still be somebody's work; beyond it, its process is dead."""

log = get_log("control.finish")


class FinishSandboxes:
    """`born_at` is when this control plane started. If it is the only one (embedded), a create from before that
    moment, or that nobody here works at, is ended at once."""

    def __init__(self, platform: Platform, *, born_at: datetime, is_only_one: bool) -> None:
        self._platform = platform
        self._born_at = born_at
        self._is_only_one = is_only_one
        self._abandoned_s = platform.config.patient_s(CREATE_ABANDONED_S)
        self._limit = asyncio.Semaphore(CONCURRENCY)
        self._waiting: dict[SandboxId, str] = {}
        self._seen_s: dict[tuple[SandboxId, int], float] = {}

    @property
    def waiting(self) -> dict[SandboxId, str]:
        """Sandboxes that could not be finished in the last round, and why."""
        return dict(self._waiting)

    async def round(self) -> float:
        platform = self._platform
        async with platform.database.read() as tx:
            rows = await sandbox_list_in_states(tx, HALF_WAY)
        self._waiting = {}
        self._forget_seen(rows)
        async with asyncio.TaskGroup() as group:
            for row in rows:
                if row.state is SandboxState.CREATING:
                    if await self._is_abandoned(row):
                        group.create_task(self._give_up(row))
                elif row.state is SandboxState.ENDING:
                    group.create_task(self._finish(row, finish_end))
                elif await self._is_left(row):
                    how = finish_pause if row.state is SandboxState.PAUSING else abandon_resume
                    group.create_task(self._finish(row, how))
        return RETRY_S if self._waiting else ROUND_S

    def _forget_seen(self, rows: Sequence[Sandbox]) -> None:
        present = {(row.sandbox_id, row.generation) for row in rows}
        self._seen_s = {key: since_s for key, since_s in self._seen_s.items() if key in present}

    async def _is_left(self, row: Sandbox) -> bool:
        """True when nobody works at a create, pause or resume any more: another control plane has had its time, and
        nobody here does.

        NOTE: looked at before the row is read again. Who began after that has changed the row; who ended before it is
        no longer half way.
        """
        platform = self._platform
        now_s = platform.clock.monotonic_s()
        since_s = self._seen_s.setdefault((row.sandbox_id, row.generation), now_s)
        if row.sandbox_id in platform.at_work or not (self._is_only_one or now_s - since_s > self._abandoned_s):
            return False
        async with platform.database.read() as tx:
            current = await sandbox_fetch(tx, row.sandbox_id)
        return current is not None and current.generation == row.generation

    async def _is_abandoned(self, row: Sandbox) -> bool:
        """A create whose process is dead, or whose undo failed here, as all writes do while the disk is full."""
        if self._is_only_one and (row.created_at < self._born_at or await self._is_left(row)):
            return True
        return row.created_at < self._platform.clock.now() - timedelta(seconds=self._abandoned_s)

    async def _finish(self, row: Sandbox, how: Callable[[Platform, Sandbox], Awaitable[None]]) -> None:
        async with self._limit:
            try:
                await how(self._platform, row)
            except FirebrickError as exc:
                self._waiting[row.sandbox_id] = exc.message
                log.warning(
                    "sandbox.half_way", sandbox_id=row.sandbox_id, state=row.state.value, error=exc.message
                )  # fmt: skip

    async def _give_up(self, row: Sandbox) -> None:
        log.warning("sandbox.create_abandoned", sandbox_id=row.sandbox_id)
        await self._finish(row, abandon_create)


async def abandon_create(platform: Platform, sandbox: Sandbox) -> None:
    """End a sandbox that nobody was told of. Raises FirebrickError; then it may be repeated."""
    async with platform.database.write() as tx:
        await idempotency_delete_of(tx, sandbox.sandbox_id)
    # The poke of `begin_end` brings the next round, which finishes it.
    await begin_end(
        platform, sandbox.sandbox_id, EndReason.ERROR, detail="Its creation was interrupted.",
        generation=sandbox.generation,
    )  # fmt: skip
