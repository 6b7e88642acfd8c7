"""Tell the catalog of every running sandbox once more: at start it has forgotten everything."""

from firebrick.catalog.base import Tombstone
from firebrick.control.platform import Platform
from firebrick.control.workflows.sandbox_create import route_of
from firebrick.model.ids import SandboxId
from firebrick.model.sandbox import EndReason, SandboxState
from firebrick.store.sandboxes import sandbox_fetch, sandbox_list_in_states


async def rebuild_catalog(platform: Platform) -> int:
    """Publish all; returns how many run. Call it before the first request is served."""
    async with platform.database.read() as tx:
        running = await sandbox_list_in_states(tx, (SandboxState.RUNNING,))
        ended = await sandbox_list_in_states(tx, (SandboxState.ENDED,))
    routes = [route for sandbox in running if (route := route_of(platform, sandbox)) is not None]
    oldest_first = sorted(ended, key=lambda sandbox: sandbox.ended_at or sandbox.created_at)
    tombstones = [
        Tombstone(sandbox_id=sandbox.sandbox_id, reason=sandbox.end_reason or EndReason.ERROR)
        for sandbox in oldest_first
    ]
    await platform.catalog.replace_all(routes, tombstones)
    await _withdraw_ended(platform, [route.sandbox_id for route in routes])
    return len(running)


async def _withdraw_ended(platform: Platform, published: list[SandboxId]) -> None:
    """With several control planes another may have ended one meanwhile: its withdrawal must stay the last word."""
    for sandbox_id in published:
        async with platform.database.read() as tx:
            current = await sandbox_fetch(tx, sandbox_id)
        if current is None or current.state is not SandboxState.RUNNING:
            reason = EndReason.KILLED if current is None or current.end_reason is None else current.end_reason
            await platform.catalog.withdraw(sandbox_id, reason)
