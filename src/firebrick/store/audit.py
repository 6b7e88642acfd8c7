"""Rows of the audit log. Each line's `mac` covers the line and the mac of the one before it, and the head's mac covers
both ends: without the key nobody can change, insert or remove a line unnoticed. The key is the control plane's;
reading and judging are in `control/audit.py`.
"""

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.store.schema import EPOCH, ONE_US, audit_head, audit_log

HEAD_ID = 1
MAX_DETAIL_CHARS = 500
NO_MAC = ""
"""What stands before the first line of all, and in the head of a log without lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLine:
    """One change that somebody asked for. `outcome` is ok or an error's code; `object_id` what it was about."""

    at: datetime
    actor: str
    team_id: str
    action: str
    object_id: str
    request_id: str
    outcome: str
    detail: str = ""
    sequence: int = 0
    mac: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """Both ends of what is kept. `before_mac` is the mac of the line before the first one: older lines are let go."""

    first_sequence: int
    before_mac: str
    last_sequence: int
    last_mac: str
    mac: str = ""


def line_mac(key: bytes, before: str, line: AuditLine) -> str:
    fields = (
        before, line.sequence, (line.at - EPOCH) // ONE_US, line.actor, line.team_id, line.action, line.object_id,
        line.request_id, line.outcome, line.detail,
    )  # fmt: skip
    return hmac.new(key, json.dumps(fields).encode(), hashlib.sha256).hexdigest()


def head_mac(key: bytes, head: AuditHead) -> str:
    fields = ("head", head.first_sequence, head.before_mac, head.last_sequence, head.last_mac)
    return hmac.new(key, json.dumps(fields).encode(), hashlib.sha256).hexdigest()


async def audit_append(tx: AsyncConnection, key: bytes, line: AuditLine) -> int:
    """Add a line at the end, in the caller's transaction; returns its sequence. Others who append wait."""
    head = await audit_fetch_head(tx, is_locked=True)
    sequence = head.last_sequence + 1
    values: dict[str, Any] = {
        "at": line.at,
        "actor": line.actor[:128],
        "team_id": line.team_id,
        "action": line.action[:128],
        "object_id": line.object_id[:256],
        "request_id": line.request_id,
        "outcome": line.outcome[:64],
        "detail": line.detail[:MAX_DETAIL_CHARS],
    }
    mac = line_mac(key, head.last_mac, AuditLine(sequence=sequence, **values))
    await tx.execute(insert(audit_log).values(sequence=sequence, mac=mac, **values))
    await _write_head(
        tx, key, first_sequence=head.first_sequence, before_mac=head.before_mac,
        last_sequence=sequence, last_mac=mac,
    )  # fmt: skip
    return sequence


async def audit_fetch_head(tx: AsyncConnection, *, is_locked: bool = False) -> AuditHead:
    """The first migration made the row, so there is always one to lock."""
    query = select(audit_head).where(audit_head.c.head_id == HEAD_ID)
    row = (await tx.execute(query.with_for_update() if is_locked else query)).one()
    return AuditHead(
        first_sequence=row.first_sequence,
        before_mac=row.before_mac,
        last_sequence=row.last_sequence,
        last_mac=row.last_mac,
        mac=row.mac,
    )


async def audit_list(tx: AsyncConnection, *, after: int, limit: int, team_id: str | None = None) -> Sequence[AuditLine]:
    """Lines after that sequence, in order."""
    query = select(audit_log).where(audit_log.c.sequence > after).order_by(audit_log.c.sequence).limit(limit)
    if team_id is not None:
        query = query.where(audit_log.c.team_id == team_id)
    return [_line(row) for row in await tx.execute(query)]


async def audit_delete_before(tx: AsyncConnection, key: bytes, before: datetime) -> int:
    """Let old lines go, never the last one; returns how many. The head remembers where the rest begins."""
    head = await audit_fetch_head(tx, is_locked=True)
    old = audit_log.c.at < before, audit_log.c.sequence < head.last_sequence
    last = (await tx.execute(select(func.max(audit_log.c.sequence)).where(*old))).scalar_one_or_none()
    if last is None:
        return 0
    mac = (await tx.execute(select(audit_log.c.mac).where(audit_log.c.sequence == last))).scalar_one()
    gone = await tx.execute(delete(audit_log).where(audit_log.c.sequence <= last))
    await _write_head(
        tx, key, first_sequence=last + 1, before_mac=mac, last_sequence=head.last_sequence,
        last_mac=head.last_mac,
    )  # fmt: skip
    return int(gone.rowcount)


async def _write_head(tx: AsyncConnection, key: bytes, **values: Any) -> None:
    values["mac"] = head_mac(key, AuditHead(**values))
    await tx.execute(update(audit_head).where(audit_head.c.head_id == HEAD_ID).values(**values))


def _line(row: Row[Any]) -> AuditLine:
    return AuditLine(**row._mapping)
