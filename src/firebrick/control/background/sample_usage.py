"""Read what every running sandbox uses, every few seconds."""

import asyncio

from firebrick.control.platform import Platform
from firebrick.control.usage import SAMPLE_EVERY_S, UsageSeries
from firebrick.model.errors import FirebrickError
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.store.sandboxes import sandbox_list_in_states

CONCURRENCY = 8
READ_TIMEOUT_S = 2.0


class SampleUsage:
    def __init__(self, platform: Platform, series: UsageSeries) -> None:
        self._platform = platform
        self._series = series
        self._limit = asyncio.Semaphore(CONCURRENCY)

    async def round(self) -> float:
        async with self._platform.database.read() as tx:
            running = await sandbox_list_in_states(tx, (SandboxState.RUNNING,))
        self._series.keep_only(sandbox.sandbox_id for sandbox in running)
        async with asyncio.TaskGroup() as group:
            for sandbox in running:
                group.create_task(self._sample(sandbox))
        return SAMPLE_EVERY_S

    async def _sample(self, sandbox: Sandbox) -> None:
        async with self._limit:
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    client = self._platform.nodes.client(sandbox.node_id)
                    self._series.add(sandbox.sandbox_id, await client.read_usage(sandbox.sandbox_id))
            except (FirebrickError, TimeoutError):
                # A gap in a series is its own report; node health is watched by `sync_nodes`.
                return
