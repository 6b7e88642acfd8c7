"""Forget ended sandboxes, their events and used idempotency keys, no sooner than a day after the end."""

from datetime import timedelta

from firebrick.control.platform import Platform
from firebrick.store.events import event_delete_before
from firebrick.store.idempotency import idempotency_delete_before
from firebrick.store.sandboxes import sandbox_delete_ended_before
from firebrick.store.snapshots import template_delete_unused

ROUND_S = 3600.0
KEPT = timedelta(hours=48)
"""Why a sandbox ended can be asked at least a day; two leave room for a weekend's first look."""
IDEMPOTENCY_KEPT = timedelta(hours=24)


class ForgetEnded:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def round(self) -> float:
        now = self._platform.clock.now()
        async with self._platform.database.write() as tx:
            await event_delete_before(tx, now - KEPT)
            await idempotency_delete_before(tx, now - IDEMPOTENCY_KEPT)
            await sandbox_delete_ended_before(tx, now - KEPT)
            await template_delete_unused(tx)
        return ROUND_S
