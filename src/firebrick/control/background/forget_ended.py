"""Forget ended sandboxes, their events and used idempotency keys, no sooner than a day after the end; and old lines of
the audit log."""

from datetime import timedelta

from firebrick.control.audit import AuditService
from firebrick.control.platform import Platform
from firebrick.store.events import event_delete_before
from firebrick.store.idempotency import idempotency_delete_before
from firebrick.store.sandboxes import sandbox_delete_ended_before
from firebrick.store.snapshots import template_delete_unused

ROUND_S = 3600.0
IDEMPOTENCY_KEPT = timedelta(hours=24)


class ForgetEnded:
    def __init__(self, platform: Platform, audit: AuditService) -> None:
        self._platform = platform
        self._audit = audit

    async def round(self) -> float:
        now = self._platform.clock.now()
        kept = timedelta(hours=self._platform.config.autopsy_hours)
        async with self._platform.database.write() as tx:
            await event_delete_before(tx, now - kept)
            await idempotency_delete_before(tx, now - IDEMPOTENCY_KEPT)
            await sandbox_delete_ended_before(tx, now - kept)
            await template_delete_unused(tx)
        await self._audit.forget_old()
        return ROUND_S
