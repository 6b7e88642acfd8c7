"""Tell the catalog of every sandbox once more: at start it has forgotten everything."""

from firebrick.catalog.base import Tombstone
from firebrick.control.platform import Platform
from firebrick.control.routing import PAUSED, may_wake, paused_route, publish_paused, route_of
from firebrick.model.ids import SandboxId
from firebrick.model.sandbox import EndReason, SandboxState
from firebrick.store.sandboxes import sandbox_fetch, sandbox_list_in_states

PAUSED_STATES = (SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING)


async def rebuild_catalog(platform: Platform) -> int:
    """Publish all; returns how many run. Call it before the first request is served."""
    async with platform.database.read() as tx:
        running = await sandbox_list_in_states(tx, (SandboxState.RUNNING,))
        paused = await sandbox_list_in_states(tx, PAUSED_STATES)
        ended = await sandbox_list_in_states(tx, (SandboxState.ENDED,))
    routes = [route for sandbox in running if (route := route_of(platform, sandbox)) is not None]
    routes += [paused_route(platform, sandbox) for sandbox in paused if may_wake(sandbox)]
    oldest_first = sorted(ended, key=lambda sandbox: sandbox.ended_at or sandbox.created_at)
    tombstones = [
        Tombstone(sandbox_id=sandbox.sandbox_id, reason=sandbox.end_reason or EndReason.ERROR)
        for sandbox in oldest_first
    ]
    tombstones += [
        Tombstone(sandbox_id=sandbox.sandbox_id, reason=PAUSED) for sandbox in paused if not may_wake(sandbox)
    ]
    await platform.catalog.replace_all(routes, tombstones)
    await _withdraw_ended(platform, [sandbox.sandbox_id for sandbox in running])
    return len(running)


async def _withdraw_ended(platform: Platform, published: list[SandboxId]) -> None:
    """With several control planes another may have ended one meanwhile: its withdrawal must stay the last word."""
    for sandbox_id in published:
        async with platform.database.read() as tx:
            current = await sandbox_fetch(tx, sandbox_id)
        if current is not None and current.state in PAUSED_STATES:
            await publish_paused(platform, current)
        elif current is None or current.state is not SandboxState.RUNNING:
            reason = EndReason.KILLED if current is None or current.end_reason is None else current.end_reason
            await platform.catalog.withdraw(sandbox_id, reason)
