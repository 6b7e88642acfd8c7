"""Read what every running sandbox uses, every few seconds; keep it, and end or pause those that idle too long."""

import asyncio
from datetime import timedelta

from firebrick.control.background.expire_sandboxes import expire
from firebrick.control.platform import Platform
from firebrick.control.samples import SAMPLE_EVERY_S, LatestUsage, sample_of
from firebrick.lifecycle.idle import IdleMark, idle_mark, is_idle
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError
from firebrick.model.ids import SandboxId
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.rpc.node_api import SandboxUsage
from firebrick.store.samples import sample_thin, usage_insert
from firebrick.store.sandboxes import sandbox_list_in_states

CONCURRENCY = 8
READ_TIMEOUT_S = 2.0
THIN_EVERY_COUNT = 60
"""Rounds between two thinnings: five minutes."""

log = get_log("control.usage")


class SampleUsage:
    def __init__(self, platform: Platform, latest: LatestUsage) -> None:
        self._platform = platform
        self._latest = latest
        self._limit = asyncio.Semaphore(CONCURRENCY)
        self._marks: dict[SandboxId, IdleMark] = {}
        self._round_count = 0

    async def round(self) -> float:
        platform = self._platform
        async with platform.database.read() as tx:
            running = await sandbox_list_in_states(tx, (SandboxState.RUNNING,))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._read(sandbox)) for sandbox in running]
        readings = [(row, usage) for row, task in zip(running, tasks, strict=True) if (usage := task.result())]
        self._latest.replace({row.sandbox_id: usage for row, usage in readings})
        async with platform.database.write() as tx:
            await usage_insert(tx, [sample_of(row.sandbox_id, usage) for row, usage in readings])
            if self._round_count % THIN_EVERY_COUNT == 0:
                kept = timedelta(seconds=platform.config.metrics_kept_s)
                await sample_thin(tx, now=platform.clock.now(), kept=kept)
        self._round_count += 1
        await self._end_idle(readings)
        return SAMPLE_EVERY_S

    async def _read(self, sandbox: Sandbox) -> SandboxUsage | None:
        async with self._limit:
            try:
                async with asyncio.timeout(self._platform.config.patient_s(READ_TIMEOUT_S)):
                    return await self._platform.nodes.client(sandbox.node_id).read_usage(sandbox.sandbox_id)
            except (FirebrickError, TimeoutError):
                # A gap in a series is its own report; node health is watched by `sync_nodes`.
                return None

    async def _end_idle(self, readings: list[tuple[Sandbox, SandboxUsage]]) -> None:
        now = self._platform.clock.now()
        watched = [(row, usage) for row, usage in readings if row.idle_timeout_s is not None]
        self._marks = {
            row.sandbox_id: idle_mark(
                self._marks.get(row.sandbox_id), read_at=now, cpu_ns=usage.cpu_ns, generation=row.generation
            )
            for row, usage in watched
        }
        for row, _ in watched:
            if is_idle(self._marks[row.sandbox_id], row.idle_timeout_s):
                log.info("sandbox.idle", sandbox_id=row.sandbox_id, idle_timeout_s=row.idle_timeout_s)
                await expire(self._platform, row, detail=f"It did nothing for {row.idle_timeout_s} seconds.")
