"""Tell the catalog of every running sandbox once more: at start it may have forgotten everything."""

import asyncio

from firebrick.control.platform import Platform
from firebrick.control.workflows.sandbox_create import route_of
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.store.sandboxes import sandbox_fetch, sandbox_list_in_states

CONCURRENCY = 64


async def rebuild_catalog(platform: Platform) -> int:
    """Publish all; returns how many. Call it before the first request is served."""
    async with platform.database.read() as tx:
        running = await sandbox_list_in_states(tx, (SandboxState.RUNNING,))
    limit = asyncio.Semaphore(CONCURRENCY)

    async def publish(sandbox: Sandbox) -> None:
        route = route_of(platform, sandbox)
        if route is None:
            return
        async with limit:
            await platform.catalog.publish(route)
        async with platform.database.read() as tx:
            current = await sandbox_fetch(tx, sandbox.sandbox_id)
        # With several control planes another may have ended it meanwhile: its withdrawal must stay the last word.
        if current is None or current.state is not SandboxState.RUNNING:
            reason = "killed" if current is None or current.end_reason is None else current.end_reason.value
            await platform.catalog.withdraw(sandbox.sandbox_id, reason)

    async with asyncio.TaskGroup() as group:
        for sandbox in running:
            group.create_task(publish(sandbox))
    return len(running)
