"""End every sandbox whose time is over, within 0.25 s of it."""

import asyncio
from datetime import timedelta

from firebrick.control.platform import Platform
from firebrick.control.workflows.sandbox_kill import begin_end
from firebrick.lifecycle.expiry import is_due, next_wake_s
from firebrick.log import get_log
from firebrick.model.sandbox import EndReason, Sandbox
from firebrick.store.sandboxes import sandbox_list_due, sandbox_next_due

LONGEST_SLEEP_S = 5.0
BATCH = 50

log = get_log("control.expiry")


class ExpireSandboxes:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def round(self) -> float:
        """End what is due; return the time until the next is."""
        platform = self._platform
        # NOTE: no sleep is planned while looking, so a timeout that is set meanwhile wakes the loop again.
        platform.signals.expiry_wakes_at = None
        while True:
            async with platform.database.read() as tx:
                due = await sandbox_list_due(tx, platform.clock.now(), limit=BATCH)
            if not due:
                break
            async with asyncio.TaskGroup() as group:
                for sandbox in due:
                    group.create_task(self._expire(sandbox))
        async with platform.database.read() as tx:
            next_due = await sandbox_next_due(tx)
        now = platform.clock.now()
        pause_s = next_wake_s(next_due, now=now, longest_s=LONGEST_SLEEP_S)
        platform.signals.expiry_wakes_at = now + timedelta(seconds=pause_s)
        return pause_s

    async def _expire(self, sandbox: Sandbox) -> None:
        # NOTE: only this generation: a timeout that was lengthened since it was read must win.
        has_begun = await begin_end(
            self._platform, sandbox.sandbox_id, EndReason.TIMEOUT, generation=sandbox.generation
        )
        now = self._platform.clock.now()
        if has_begun and is_due(sandbox.expires_at, now=now):
            lateness_ms = round((now - sandbox.expires_at).total_seconds() * 1000, 1)
            log.info("sandbox.expired", sandbox_id=sandbox.sandbox_id, lateness_ms=lateness_ms)
