"""From teams, keys, users and nodes to what travels."""

import re

from firebrick.api import owner_schemas as schemas
from firebrick.control.audit import AuditLine
from firebrick.control.node_view import NodeReport
from firebrick.model.ids import UserId
from firebrick.model.node import NodeState
from firebrick.model.team import ApiKey, Team, User

SECRET_CHARS = 40
"""Behind the prefix; of keys that were given to us from elsewhere the length is not kept."""

_STATUS: dict[NodeState, schemas.NodeStatus] = {
    NodeState.JOINING: "connecting",
    NodeState.READY: "ready",
    NodeState.DRAINING: "draining",
    NodeState.UNHEALTHY: "unhealthy",
    NodeState.LOST: "unhealthy",
}
_LIMITS = {
    "maxSandboxes": "max_sandboxes",
    "maxTimeoutS": "max_timeout_s",
    "maxMillicpu": "max_millicpu",
    "maxMemoryMiB": "max_memory_mib",
    "maxDiskMiB": "max_disk_mib",
    "maxCreatesPerS": "max_creates_per_s",
}


def read_limits(quota: schemas.Quota) -> dict[str, int | float | None]:
    return {name: getattr(quota, wire) for wire, name in _LIMITS.items()}


def wire_team(team: Team) -> schemas.AdminTeam:
    limits = {wire: getattr(team, name) for wire, name in _LIMITS.items()}
    return schemas.AdminTeam(teamID=team.team_id, name=team.name, createdAt=team.created_at, **limits)


def wire_mask(mask: str) -> schemas.MaskingDetails:
    prefix = re.match(r"(?:sk_)?e2b_|", mask)
    start = prefix.end() if prefix else 0
    shown, _, suffix = mask[start:].partition("…")
    return schemas.MaskingDetails(
        prefix=mask[:start], valueLength=SECRET_CHARS, maskedValuePrefix=shown, maskedValueSuffix=suffix
    )


def key_fields(key: ApiKey, emails: dict[UserId, str]) -> dict[str, object]:
    made_by = None if key.created_by is None else key.created_by
    return {
        "id": key.key_id,
        "name": key.name,
        "mask": wire_mask(key.mask),
        "createdAt": key.created_at,
        "createdBy": None if made_by is None else schemas.TeamUser(id=made_by, email=emails.get(made_by)),
        "lastUsed": key.last_used_at,
    }


def wire_user(user: User) -> schemas.AdminUser:
    return schemas.AdminUser(id=user.user_id, email=user.email, createdAt=user.created_at, subject=user.subject)


def wire_node(report: NodeReport) -> schemas.Node:
    view = report.view
    return schemas.Node(
        id=view.node_id,
        status=_STATUS[view.state],
        version=report.version,
        seenAt=report.seen_at,
        error=report.error,
        runtimes=[runtime.value for runtime in view.runtimes],
        sandboxCount=report.sandbox_count,
        sandboxStartingCount=view.starting_count,
        freeSlotCount=view.free_slot_count,
        metrics=schemas.NodeMetrics(
            allocatedCPU=-(-view.reserved_millicpu // 1000),
            allocatedMemoryBytes=view.reserved_memory_mib * 2**20,
            allocatedDiskBytes=view.reserved_disk_mib * 2**20,
            cpuCount=view.millicpu // 1000,
            memoryTotalBytes=view.memory_mib * 2**20,
            diskTotalBytes=view.disk_mib * 2**20,
        ),
    )


def wire_audit(line: AuditLine) -> schemas.AuditLine:
    return schemas.AuditLine(
        sequence=line.sequence,
        at=line.at,
        actor=line.actor,
        teamID=line.team_id,
        action=line.action,
        objectID=line.object_id,
        requestID=line.request_id,
        outcome=line.outcome,
        detail=line.detail,
        mac=line.mac,
    )
