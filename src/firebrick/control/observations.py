"""What can be seen of a sandbox from outside: its logs and what it uses."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from math import ceil

from firebrick.control.platform import Platform
from firebrick.control.samples import SAMPLE_EVERY_S, LatestUsage, TeamSample, UsageSample, sample_of
from firebrick.control.sandboxes import SandboxService, not_found
from firebrick.model.errors import DeadlineExceeded, FirebrickError, NotFound
from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.rpc.node_api import LogEntry, SandboxUsage
from firebrick.store.samples import team_sample_list, usage_list
from firebrick.store.sandboxes import sandbox_fetch

READ_TIMEOUT_S = 5.0


class ObservationService:
    def __init__(self, platform: Platform, sandboxes: SandboxService, latest: LatestUsage) -> None:
        self._platform = platform
        self._sandboxes = sandboxes
        self._latest = latest

    async def read_logs(
        self, team_id: TeamId, sandbox_id: SandboxId, *, start_ms: int, limit: int
    ) -> tuple[LogEntry, ...]:
        """Oldest first, from `start_ms` on; also of a sandbox that ended a while ago.

        Raises: NotFound; Unavailable or DeadlineExceeded — its node does not answer.
        """
        async with self._platform.database.read() as tx:
            sandbox = await sandbox_fetch(tx, sandbox_id)
        if sandbox is None or sandbox.team_id != team_id or sandbox.state is SandboxState.CREATING:
            raise not_found(sandbox_id)
        try:
            async with asyncio.timeout(self._platform.config.patient_s(READ_TIMEOUT_S)):
                client = self._platform.nodes.client(sandbox.node_id)
                return await client.read_logs(sandbox_id, start_ms=start_ms, limit=limit)
        except TimeoutError as exc:
            raise DeadlineExceeded("The sandbox's node did not answer in time. Try again.") from exc

    async def read_usage(
        self, team_id: TeamId, sandbox_id: SandboxId, *, start: datetime | None, end: datetime | None
    ) -> tuple[tuple[UsageSample, ...], int]:
        """Samples in [start, end], oldest first, with a fresh one when the present is asked for, and the sandbox's
        count of CPUs.

        Raises: NotFound.
        """
        sandbox = await self._sandboxes.fetch(team_id, sandbox_id)
        async with self._platform.database.read() as tx:
            samples = await usage_list(tx, sandbox_id, start=start, end=end)
        now = self._platform.clock.now()
        if end is None or end >= now.replace(microsecond=0):
            fresh = await self._read_now(sandbox)
            if fresh is not None and (not samples or fresh.timestamp > samples[-1].at):
                samples += (sample_of(sandbox_id, fresh),)
        return samples, _cpu_count(sandbox)

    async def read_latest(
        self, team_id: TeamId, sandbox_ids: Sequence[SandboxId]
    ) -> dict[SandboxId, tuple[UsageSample, int]]:
        """The latest reading and the count of CPUs of each that the team has running; others are absent."""
        found: dict[SandboxId, tuple[UsageSample, int]] = {}

        async def read(sandbox_id: SandboxId) -> None:
            try:
                sandbox = await self._sandboxes.fetch(team_id, sandbox_id)
            except NotFound:
                return
            usage = await self._read_now(sandbox)
            if usage is not None:
                found[sandbox_id] = sample_of(sandbox_id, usage), _cpu_count(sandbox)

        async with asyncio.TaskGroup() as group:
            for sandbox_id in sandbox_ids:
                group.create_task(read(sandbox_id))
        return found

    async def read_team(self, team_id: TeamId, *, start: datetime, end: datetime) -> tuple[TeamSample, ...]:
        """Samples of the team in [start, end], oldest first."""
        async with self._platform.database.read() as tx:
            return await team_sample_list(tx, team_id, start=start, end=end)

    async def _read_now(self, sandbox: Sandbox) -> SandboxUsage | None:
        """The last reading, or a new one when that is old. A node that does not answer leaves a gap, not an error."""
        if sandbox.state is not SandboxState.RUNNING:
            return None
        latest = self._latest.get(sandbox.sandbox_id)
        now = self._platform.clock.now()
        if latest is not None and (now - latest.timestamp).total_seconds() < SAMPLE_EVERY_S:
            return latest
        try:
            async with asyncio.timeout(self._platform.config.patient_s(READ_TIMEOUT_S)):
                usage = await self._platform.nodes.client(sandbox.node_id).read_usage(sandbox.sandbox_id)
        except (FirebrickError, TimeoutError):
            return None
        self._latest.put(sandbox.sandbox_id, usage)
        return usage


def _cpu_count(sandbox: Sandbox) -> int:
    return ceil(sandbox.limits.millicpu / 1000)
