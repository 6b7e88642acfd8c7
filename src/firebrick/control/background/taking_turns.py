"""Rounds that only one of the control planes on a store does at a time, under a lease in that store.

The others look now and then, and one of them takes over when the lease runs out: a holder that lost its process, or the
store, is cut off before that. What is safe to be done twice at once (by the generation of a row, or because it is
idempotent) needs none of this.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

from firebrick.control.platform import Platform
from firebrick.log import get_log
from firebrick.model.errors import Conflict, FirebrickError
from firebrick.store.leases import lease_take

LEASE_S = 30.0
RENEW_S = 8.0
LOOK_S = 5.0

log = get_log("control.lease")


class TakingTurns:
    """`round` of a reconciler, for the holder of the lease `name`. An embedded store has one control plane only."""

    def __init__(self, platform: Platform, name: str, round: Callable[[], Awaitable[float]]) -> None:
        self._platform = platform
        self._name = name
        self._round = round
        self._holder = secrets.token_hex(8)
        self._is_holder = platform.database.is_sqlite

    async def round(self) -> float:
        if self._platform.database.is_sqlite:
            return await self._round()
        if not await self._take():
            return LOOK_S
        work = asyncio.ensure_future(self._round())
        lost = asyncio.ensure_future(self._keep())
        try:
            await asyncio.wait((work, lost), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            log.warning("lease.lost", lease=self._name)
            return LOOK_S
        finally:
            for task in (work, lost):
                task.cancel()
            await asyncio.wait((work, lost))

    async def _take(self) -> bool:
        now = self._platform.clock.now()
        try:
            async with self._platform.database.write() as tx:
                has = await lease_take(
                    tx, self._name, self._holder, now=now, until=now + timedelta(seconds=LEASE_S)
                )  # fmt: skip
        except Conflict:
            has = False
        if has and not self._is_holder:
            log.info("lease.taken", lease=self._name)
        self._is_holder = has
        return has

    async def _keep(self) -> None:
        """Prolong it while the round lasts; returns when it cannot be had for sure any more."""
        clock = self._platform.clock
        sure_until_s = clock.monotonic_s() + LEASE_S - RENEW_S
        while clock.monotonic_s() < sure_until_s:
            await clock.sleep(RENEW_S)
            with suppress(FirebrickError):
                before_s = clock.monotonic_s()
                if not await self._take():
                    return
                sure_until_s = before_s + LEASE_S - RENEW_S
