"""End or pause every sandbox whose time is over, within 0.25 s of it."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from firebrick.control.platform import Platform
from firebrick.control.workflows.sandbox_kill import begin_end, insist
from firebrick.control.workflows.sandbox_pause import SandboxPause, pause_sandbox
from firebrick.lifecycle.expiry import is_due, next_wake_s
from firebrick.log import get_log
from firebrick.model.errors import Conflict, DeadlineExceeded, FirebrickError, NotFound, Unavailable, WrongState
from firebrick.model.ids import SandboxId
from firebrick.model.sandbox import EndReason, OnTimeout, Sandbox, SandboxState
from firebrick.store.sandboxes import (
    sandbox_fetch,
    sandbox_list_due,
    sandbox_next_due,
    sandbox_update_if,
)

LONGEST_SLEEP_S = 5.0
BATCH = 50
MOST_BATCHES = 20
"""In one round: what could not be done must not keep the loop from sleeping."""
PAUSE_AGAIN_S = 30.0

log = get_log("control.expiry")


class ExpireSandboxes:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def round(self) -> float:
        """End or pause what is due; return the time until the next is."""
        platform = self._platform
        # NOTE: no sleep is planned while looking, so a timeout that is set meanwhile wakes the loop again.
        platform.signals.expiry_wakes_at = None
        for _ in range(MOST_BATCHES):
            async with platform.database.read() as tx:
                due = await sandbox_list_due(tx, platform.clock.now(), limit=BATCH)
            if not due:
                break
            async with asyncio.TaskGroup() as group:
                for sandbox in due:
                    group.create_task(expire(platform, sandbox))
        async with platform.database.read() as tx:
            next_due = await sandbox_next_due(tx)
        now = platform.clock.now()
        pause_s = next_wake_s(next_due, now=now, longest_s=LONGEST_SLEEP_S)
        platform.signals.expiry_wakes_at = now + timedelta(seconds=pause_s)
        return pause_s


async def expire(platform: Platform, sandbox: Sandbox, *, detail: str = "") -> None:
    """Do what its owner chose for the end of its time. Only to this generation: a timeout that was lengthened since
    the row was read wins."""
    if sandbox.on_timeout is OnTimeout.PAUSE:
        await _pause(platform, sandbox)
    elif await begin_end(
        platform, sandbox.sandbox_id, EndReason.TIMEOUT, detail=detail, generation=sandbox.generation
    ):  # fmt: skip
        _log(platform, sandbox, "sandbox.expired")


async def _pause(platform: Platform, sandbox: Sandbox) -> None:
    pause = SandboxPause(
        platform=platform,
        sandbox_id=sandbox.sandbox_id,
        keep_memory=sandbox.auto_pause_memory,
        generation=sandbox.generation,
    )
    try:
        await pause_sandbox(pause)
    except (WrongState, NotFound, Conflict):
        return
    except (Unavailable, DeadlineExceeded) as exc:
        # The row is `pausing`, and `finish_sandboxes` goes on; or the store is away, and the next round looks again.
        log.warning("sandbox.pause_waits", sandbox_id=sandbox.sandbox_id, error=exc.message)
    except FirebrickError as exc:
        # It cannot be paused now. Its owner asked that it must not be lost, so it lives on, and it is tried again.
        log.warning("sandbox.pause_failed", sandbox_id=sandbox.sandbox_id, error=exc.message, detail=exc.detail)
        await insist(lambda: _postpone(platform, sandbox.sandbox_id))
    else:
        _log(platform, sandbox, "sandbox.auto_paused")


async def _postpone(platform: Platform, sandbox_id: SandboxId) -> bool:
    async with platform.database.write() as tx:
        row = await sandbox_fetch(tx, sandbox_id)
        now = platform.clock.now()
        if row is None or row.state is not SandboxState.RUNNING or not is_due(row.expires_at, now=now):
            return False
        await sandbox_update_if(tx, replace(row, expires_at=now + timedelta(seconds=PAUSE_AGAIN_S)))
    return True


def _log(platform: Platform, sandbox: Sandbox, event: str) -> None:
    now = platform.clock.now()
    if is_due(sandbox.expires_at, now=now):
        lateness_ms = round((now - sandbox.expires_at).total_seconds() * 1000, 1)
        log.info(event, sandbox_id=sandbox.sandbox_id, lateness_ms=lateness_ms)
