"""What travels on the wire about teams, users, keys, nodes and the audit log. Names in camelCase are E2B's or follow
them; what E2B has not is ours."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from firebrick.api.schemas import Request, Text, Wire

MAX_LIMIT = 2**31 - 1

Label = Annotated[Text, StringConstraints(min_length=1, max_length=128)]
Count = Annotated[int, Field(ge=0, le=MAX_LIMIT)]


class MaskingDetails(Wire):
    prefix: str
    valueLength: int
    maskedValuePrefix: str
    maskedValueSuffix: str


class TeamUser(Wire):
    id: str
    email: str | None = None


class Team(Wire):
    """`apiKey` is empty: keys are stored hashed, so none can be shown. Make one with POST /api-keys."""

    teamID: str
    name: str
    apiKey: str
    isDefault: bool


class NewKey(Request):
    name: Label


class TeamApiKey(Wire):
    id: str
    name: str
    mask: MaskingDetails
    createdAt: datetime
    createdBy: TeamUser | None = None
    lastUsed: datetime | None = None


class CreatedTeamApiKey(TeamApiKey):
    key: str


class CreatedAccessToken(Wire):
    id: str
    name: str
    token: str
    mask: MaskingDetails
    createdAt: datetime


class Quota(Request):
    """What is not given stays as it is (a new team: as the settings say). 0 means no limit of the team's own, but for
    maxSandboxes and maxTimeoutS."""

    maxSandboxes: Count | None = None
    maxTimeoutS: Annotated[int, Field(ge=1, le=MAX_LIMIT)] | None = None
    maxMillicpu: Count | None = None
    maxMemoryMiB: Count | None = None
    maxDiskMiB: Count | None = None
    maxCreatesPerS: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = None


class NewTeam(Quota):
    name: Label


class AdminTeam(Wire):
    teamID: str
    name: str
    createdAt: datetime
    maxSandboxes: int
    maxTimeoutS: int
    maxMillicpu: int
    maxMemoryMiB: int
    maxDiskMiB: int
    maxCreatesPerS: float


class NewUser(Request):
    email: Annotated[Text, StringConstraints(min_length=3, max_length=254)]
    teamIDs: Annotated[tuple[Label, ...], Field(max_length=100, strict=False)] = ()
    subject: Annotated[Text, StringConstraints(min_length=1, max_length=512)] | None = None


class AdminUser(Wire):
    id: str
    email: str
    createdAt: datetime
    subject: str | None = None


class NewJwt(Request):
    lifetimeS: Annotated[int, Field(ge=60, le=366 * 86_400)] = 86_400


class CreatedJwt(Wire):
    token: str
    expiresAt: datetime


class KillResult(Wire):
    killedCount: int
    failedCount: int


class NodeMetrics(Wire):
    """Allocated is what is promised to sandboxes. cpuCount and memoryTotalBytes are what may be promised at most."""

    allocatedCPU: int
    allocatedMemoryBytes: int
    cpuCount: int
    memoryTotalBytes: int
    allocatedDiskBytes: int
    diskTotalBytes: int


NodeStatus = Literal["ready", "draining", "connecting", "unhealthy", "standby"]


class Node(Wire):
    id: str
    status: NodeStatus
    version: str
    seenAt: datetime | None
    error: str
    runtimes: list[str]
    sandboxCount: int
    sandboxStartingCount: int
    freeSlotCount: int
    metrics: NodeMetrics


class NodeStatusChange(Request):
    status: Literal["ready", "draining"]


class AuditLine(Wire):
    sequence: int
    at: datetime
    actor: str
    teamID: str
    action: str
    objectID: str
    requestID: str
    outcome: str
    detail: str
    mac: str


class AuditReport(Wire):
    lineCount: int
    firstSequence: int
    lastSequence: int
    lastMac: str
    problems: list[str]
