"""The audit log: a line for every change that somebody asked for, chained so that tampering is found and named.

Changes of teams, keys, users and quotas write their line in their own transaction. Changes of sandboxes and all
others get theirs when the outcome is known, before the answer is sent; a crash between the two leaves the sandbox's
own events, which name the actor in the transaction of the change.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.control.actor import current_actor, note_audited
from firebrick.control.platform import Platform
from firebrick.log import bound_value, get_log
from firebrick.model.errors import FirebrickError
from firebrick.store.audit import (
    NO_MAC,
    AuditHead,
    audit_append,
    audit_delete_before,
    audit_fetch_head,
    audit_list,
    head_mac,
    line_mac,
)
from firebrick.store.audit import (
    AuditLine as AuditLine,
)

log = get_log("control.audit")

OK = "ok"
PAGE = 1000
MAX_PROBLEMS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """`problems` is empty when nothing was tampered with. `last_mac` may be kept elsewhere: a log that is later
    rolled back to an older state does not contain it any more."""

    line_count: int
    first_sequence: int
    last_sequence: int
    last_mac: str
    problems: tuple[str, ...]


class ChainCheck:
    """Judges lines one by one, in order; pure but for its own state."""

    def __init__(self, key: bytes, head: AuditHead) -> None:
        self._key = key
        self._head = head
        self._before: str | None = head.before_mac
        self._next = head.first_sequence
        self.line_count = 0
        self.problems: list[str] = []
        is_untouched = head.mac == NO_MAC and head.last_sequence == 0
        if not is_untouched and head.mac != head_mac(key, head):
            self._report("the record of both ends of the log was changed")

    def take(self, lines: Iterable[AuditLine]) -> None:
        for line in lines:
            self.line_count += 1
            if line.sequence > self._head.last_sequence:
                self._report(f"line {line.sequence} was added behind the end")
            elif line.sequence < self._next:
                self._report(f"line {line.sequence} was added before the beginning")
                continue
            elif line.sequence > self._next:
                self._missing(self._next, line.sequence - 1)
            # Behind a gap the line's predecessor is unknown: its own content cannot be judged.
            if self._before is not None and line.mac != line_mac(self._key, self._before, line):
                self._report(f"line {line.sequence} ({line.action} by {line.actor}) was changed")
            self._before, self._next = line.mac, line.sequence + 1

    def finish(self) -> AuditReport:
        if self._next <= self._head.last_sequence:
            self._missing(self._next, self._head.last_sequence)
        elif self._next == self._head.last_sequence + 1 and self._before not in (None, self._head.last_mac):
            self._report(f"line {self._head.last_sequence} is not the one that was written last")
        return AuditReport(
            line_count=self.line_count,
            first_sequence=self._head.first_sequence,
            last_sequence=self._head.last_sequence,
            last_mac=self._head.last_mac,
            problems=tuple(self.problems),
        )

    def _missing(self, first: int, last: int) -> None:
        self._report(f"line {first} is missing" if first == last else f"lines {first} to {last} are missing")
        self._before = None

    def _report(self, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


class AuditService:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._key = platform.tokens.audit_key()

    async def note(
        self, tx: AsyncConnection, action: str, *, team_id: str = "", object_id: str = "", detail: str = ""
    ) -> None:
        """Write the line of a change in that change's own transaction."""
        await audit_append(tx, self._key, self._line(action, team_id, object_id, OK, detail))
        note_audited()

    async def record(self, action: str, *, team_id: str, object_id: str, outcome: str, detail: str = "") -> None:
        """Write a line of its own. What was done is done: when the store does not answer, the line goes to the log."""
        line = self._line(action, team_id, object_id, outcome, detail)
        try:
            async with self._platform.database.write() as tx:
                await audit_append(tx, self._key, line)
        except FirebrickError:
            log.exception("audit.lost", line=repr(line))

    def _line(self, action: str, team_id: str, object_id: str, outcome: str, detail: str) -> AuditLine:
        return AuditLine(
            at=self._platform.clock.now(),
            actor=current_actor(),
            team_id=team_id,
            action=action,
            object_id=object_id,
            request_id=bound_value("request_id"),
            outcome=outcome,
            detail=detail,
        )

    async def list_lines(self, *, after: int, limit: int, team_id: str | None = None) -> Sequence[AuditLine]:
        """In order, after that sequence."""
        async with self._platform.database.read() as tx:
            return await audit_list(tx, after=after, limit=limit, team_id=team_id)

    async def verify(self) -> AuditReport:
        """Read the whole log and judge it, as it stands at one moment."""
        async with self._platform.database.write() as tx:
            # NOTE: the write door: nobody appends between the head and the last line.
            head = await audit_fetch_head(tx)
            check, after = ChainCheck(self._key, head), 0
            while lines := await audit_list(tx, after=after, limit=PAGE):
                check.take(lines)
                after = lines[-1].sequence
        report = check.finish()
        if report.problems:
            log.error("audit.tampered", problems=report.problems)
        return report

    async def forget_old(self) -> None:
        """Let go what is older than the setting says; the chain goes on from there."""
        before = self._platform.clock.now() - timedelta(days=self._platform.config.audit_days)
        async with self._platform.database.write() as tx:
            await audit_delete_before(tx, self._key, before)
