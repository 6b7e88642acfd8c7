"""Why: the life of a sandbox as it was written down, and of every create that failed.

The lines are the events that each change wrote in its own transaction; they outlive the sandbox by the setting
`autopsy_hours`.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass

from firebrick.control.actor import current_actor
from firebrick.control.platform import Platform
from firebrick.control.workflows.sandbox_create import SandboxCreate
from firebrick.lifecycle.autopsy import told_end
from firebrick.lifecycle.memory_kills import Told, victims
from firebrick.log import bound_value, get_log
from firebrick.model.errors import FirebrickError, LimitExceeded, NoCapacity, NotFound, RateExceeded, Unavailable
from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.sandbox import Sandbox
from firebrick.placement.place import NoNodeFits
from firebrick.store.events import SandboxHappening as SandboxHappening
from firebrick.store.events import event_insert, event_list, event_list_of_team
from firebrick.store.sandboxes import sandbox_fetch

CREATE_FAILED = "create_failed"
ENDING = "ending"
OUT_OF_MEMORY = "out_of_memory"
READ_TIMEOUT_S = 2.0
MOST_LINES = 10_000
MAX_FAILED_PER_MINUTE = 100
"""Kept of one team's failed creates: a loop that runs into its quota must not fill the store."""

log = get_log("control.autopsy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Autopsy:
    """`summary` is one sentence; `sandbox` is None for a create that never got as far as a row."""

    sandbox_id: SandboxId
    summary: str
    sandbox: Sandbox | None
    events: tuple[SandboxHappening, ...]


class AutopsyService:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._minute = 0
        self._failed_counts: Counter[TeamId] = Counter()

    async def why(self, team_id: TeamId, sandbox_id: SandboxId) -> Autopsy:
        """Raises NotFound: unknown, forgotten by now, or another team's."""
        async with self._platform.database.read() as tx:
            events = await event_list(tx, team_id, sandbox_id)
            sandbox = await sandbox_fetch(tx, sandbox_id)
        if sandbox is not None and sandbox.team_id != team_id:
            sandbox = None
        if sandbox is None and not events:
            raise NotFound(f'Nothing is known of a sandbox "{sandbox_id}" that you have access to.')
        if sandbox is not None:
            events = tuple(sorted((*events, *await self._memory_kills(sandbox)), key=lambda event: event.at))
        return Autopsy(sandbox_id=sandbox_id, summary=_summary(sandbox, events), sandbox=sandbox, events=events)

    async def _memory_kills(self, sandbox: Sandbox) -> tuple[SandboxHappening, ...]:
        """Which processes were killed for memory: its log has that, on its node. One that does not answer leaves a
        gap, not an error."""
        if sandbox.node_id is None:
            return ()
        try:
            async with asyncio.timeout(self._platform.config.patient_s(READ_TIMEOUT_S)):
                client = self._platform.nodes.client(sandbox.node_id)
                entries = await client.read_logs(sandbox.sandbox_id, start_ms=0, limit=MOST_LINES)
        except (FirebrickError, TimeoutError):
            return ()
        lines = (Told(at=entry.timestamp, message=entry.message, fields=entry.fields) for entry in entries)
        return tuple(
            SandboxHappening(
                sandbox_id=sandbox.sandbox_id, team_id=sandbox.team_id, at=victim.at, kind=OUT_OF_MEMORY,
                detail=victim.detail, actor="system",
                facts={} if victim.pid is None else {"name": victim.name, "pid": victim.pid},
            )
            for victim in victims(lines)
        )  # fmt: skip

    async def list_endings(self, team_id: TeamId, *, limit: int) -> tuple[SandboxHappening, ...]:
        """The team's latest ends and failed creates, newest first."""
        async with self._platform.database.read() as tx:
            return await event_list_of_team(tx, team_id, (ENDING, CREATE_FAILED), limit=limit)

    async def note_failed_create(self, create: SandboxCreate, error: FirebrickError) -> None:
        """Write down why nothing was created, and add to the caller's error where to read it."""
        sandbox, now = create.sandbox, self._platform.clock.now()
        if isinstance(error, RateExceeded) or not self._may_note(sandbox.team_id, int(now.timestamp()) // 60):
            return
        facts = {"steps_ms": create.steps_ms, "request_id": bound_value("request_id")}
        if isinstance(error, NoCapacity | Unavailable):
            facts["nodes"] = self._node_reasons(error)
        failed = SandboxHappening(
            sandbox_id=sandbox.sandbox_id, team_id=sandbox.team_id, at=now, kind=CREATE_FAILED, reason=error.code,
            detail=error.message, actor=current_actor(), facts=facts,
        )  # fmt: skip
        try:
            async with self._platform.database.write() as tx:
                await event_insert(tx, failed)
        except FirebrickError:
            log.exception("autopsy.lost", sandbox_id=sandbox.sandbox_id, reason=error.code)
            return
        if not isinstance(error, LimitExceeded):
            error.message += f" `firebrick why {sandbox.sandbox_id}` tells more."

    def _may_note(self, team_id: TeamId, minute: int) -> bool:
        if minute != self._minute:
            self._minute, self._failed_counts = minute, Counter()
        self._failed_counts[team_id] += 1
        return self._failed_counts[team_id] <= MAX_FAILED_PER_MINUTE

    def _node_reasons(self, error: FirebrickError) -> dict[str, str]:
        if isinstance(error, NoNodeFits):
            return {str(node_id): reason for node_id, reason in error.rejected.items()}
        statuses = self._platform.nodes.statuses.items()
        return {node_id: status.error or f"it is {status.state.value}" for node_id, status in statuses}


def _summary(sandbox: Sandbox | None, events: tuple[SandboxHappening, ...]) -> str:
    failed = next((event for event in events if event.kind == CREATE_FAILED), None)
    if failed is not None:
        return f"It was never created: {failed.detail}"
    if sandbox is not None and sandbox.end_reason is not None:
        return f"It has ended: {told_end(sandbox)}."
    if sandbox is not None:
        return f"It is {sandbox.state.value}, until {sandbox.expires_at:%Y-%m-%dT%H:%M:%SZ}."
    return "It has ended, and only its events are left."
