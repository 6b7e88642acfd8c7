"""What travels on the wire, spelled as E2B spells it. Unknown fields of a request are ignored, as E2B does.

`runtime` and `isolation` in answers are ours: they tell what stands between a sandbox and the host. So is `keepsMemory`
of a paused one: true while its processes wait where they were, false when only its disk is there.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

MAX_TEMPLATE_CHARS = 256
MAX_PAIRS = 500
MAX_NAME_CHARS = 256
MAX_METADATA_BYTES = 64 * 1024
MAX_ENV_BYTES = 256 * 1024
MAX_ENV_VALUE_BYTES = 128 * 1024 - 1024
"""Linux refuses to start a program with a single string of 128 KiB (MAX_ARG_STRLEN), the name included."""


class Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Request(Wire):
    model_config = ConfigDict(extra="ignore", strict=True)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain the character NUL")
    return text


def _check_size(pairs: dict[str, str], *, bytes_most: int) -> None:
    size = sum(len(key.encode()) + len(value.encode()) for key, value in pairs.items())
    if size > bytes_most:
        raise ValueError(f"too large: {size} bytes of keys and values, at most {bytes_most}")


def _check_metadata(pairs: dict[str, str]) -> dict[str, str]:
    _check_size(pairs, bytes_most=MAX_METADATA_BYTES)
    return pairs


def _check_env(pairs: dict[str, str]) -> dict[str, str]:
    _check_size(pairs, bytes_most=MAX_ENV_BYTES)
    for name, value in pairs.items():
        if not name or "=" in name:
            raise ValueError("a name must not be empty or contain '='")
        if len(value.encode()) > MAX_ENV_VALUE_BYTES:
            raise ValueError(f"a value is too large: at most {MAX_ENV_VALUE_BYTES} bytes")
    return pairs


Text = Annotated[str, AfterValidator(_without_nul)]
Name = Annotated[str, StringConstraints(max_length=MAX_NAME_CHARS), AfterValidator(_without_nul)]
Metadata = Annotated[dict[Name, Text], Field(max_length=MAX_PAIRS), AfterValidator(_check_metadata)]
EnvVars = Annotated[dict[Name, Text], Field(max_length=MAX_PAIRS), AfterValidator(_check_env)]


class AutoResume(Request):
    enabled: bool | None = None


class NetworkRules(Request):
    """`egressProxy` and `rules` are read to refuse them."""

    allowOut: list[Name] | None = None
    denyOut: list[Name] | None = None
    dnsServers: list[Name] | None = None
    egressProxy: dict[str, Any] | None = None
    rules: dict[str, Any] | None = None


class SandboxNetworkConfig(NetworkRules):
    allowPublicTraffic: bool | None = None
    maskRequestHost: Name | None = None
    httpsPorts: list[int] | None = None


class SandboxNetworkUpdate(NetworkRules):
    allow_internet_access: bool | None = None


class NewSandboxV2(Request):
    """Fields after `mcp` are read to refuse what this version cannot honour, never ignored."""

    templateID: Annotated[Text, StringConstraints(min_length=1, max_length=MAX_TEMPLATE_CHARS)]
    timeout: int = 300
    metadata: Metadata | None = None
    envVars: EnvVars | None = None
    allow_internet_access: bool | None = None
    mcp: dict[str, Any] | None = None
    autoPause: bool | None = None
    autoPauseMemory: bool | None = None
    autoResume: AutoResume | None = None
    network: SandboxNetworkConfig | None = None
    volumeMounts: list[Any] | None = None
    iam: dict[str, Any] | None = None


class NewSandbox(NewSandboxV2):
    timeout: int = 15
    secure: bool | None = None


class ConnectSandbox(Request):
    timeout: int
    memory: bool | None = None


class ConnectSandboxV2(Request):
    timeout: int | None = None
    memory: bool | None = None


class PauseSandbox(Request):
    memory: bool | None = None
    requireHealthyGuest: bool | None = None


class ResumeSandbox(Request):
    timeout: int = 15
    autoPause: bool | None = None
    memory: bool | None = None


class ForkSandbox(Request):
    timeout: int = 15
    count: Annotated[int, Field(ge=1, le=100)] = 1


class SnapshotSandbox(Request):
    name: Annotated[Text, StringConstraints(min_length=1, max_length=MAX_TEMPLATE_CHARS)] | None = None
    memory: bool | None = None


class SandboxTimeout(Request):
    timeout: int


class SandboxRefresh(Request):
    duration: Annotated[int, Field(ge=0, le=3600)] | None = None


class Error(Wire):
    code: int
    message: str
    error_code: str | None = None


class Sandbox(Wire):
    templateID: str
    sandboxID: str
    clientID: str
    envdVersion: str
    alias: str | None = None
    envdAccessToken: str | None = None
    trafficAccessToken: str | None = None
    domain: str | None = None
    runtime: str | None = None
    isolation: str | None = None


class ListedSandbox(Wire):
    templateID: str
    sandboxID: str
    clientID: str
    startedAt: datetime
    endAt: datetime
    cpuCount: int
    memoryMB: int
    diskSizeMB: int
    state: Literal["running", "paused"]
    envdVersion: str
    alias: str | None = None
    metadata: dict[str, str] | None = None
    runtime: str | None = None
    isolation: str | None = None
    keepsMemory: bool | None = None
    envdUnresponsiveAtPause: bool | None = None


class SandboxLifecycle(Wire):
    autoResume: bool
    onTimeout: Literal["kill", "pause"]


class SandboxDetail(ListedSandbox):
    pauseMode: Literal["full", "filesystem"] | None = None
    envdAccessToken: str | None = None
    allowInternetAccess: bool | None = None
    network: dict[str, Any] | None = None
    domain: str | None = None
    lifecycle: SandboxLifecycle | None = None


class ForkResult(Wire):
    sandbox: Sandbox | None = None
    error: Error | None = None


class Snapshot(Wire):
    snapshotID: str
    names: list[str]


class TeamMetric(Wire):
    timestamp: datetime
    timestampUnix: int
    concurrentSandboxes: int
    sandboxStartRate: float


class MaxTeamMetric(Wire):
    timestamp: datetime
    timestampUnix: int
    value: float


class SandboxMetric(Wire):
    timestamp: datetime
    timestampUnix: int
    cpuCount: int
    cpuUsedPct: float
    memUsed: int
    memTotal: int
    memCache: int
    diskUsed: int
    diskTotal: int


class SandboxesWithMetrics(Wire):
    sandboxes: dict[str, SandboxMetric]


class SandboxLog(Wire):
    timestamp: datetime
    line: str


class SandboxLogEntry(Wire):
    timestamp: datetime
    message: str
    level: Literal["debug", "info", "warn", "error"]
    fields: dict[str, str]


class SandboxLogs(Wire):
    logs: list[SandboxLog]
    logEntries: list[SandboxLogEntry]


class SandboxLogsV2(Wire):
    logs: list[SandboxLogEntry]


class Template(Wire):
    templateID: str
    buildID: str
    cpuCount: int
    memoryMB: int
    diskSizeMB: int
    public: bool
    aliases: list[str]
    names: list[str]
    createdAt: datetime
    updatedAt: datetime
    createdBy: None = None
    lastSpawnedAt: datetime | None = None
    spawnCount: int
    buildCount: int
    envdVersion: str
    buildStatus: str


class TemplateAlias(Wire):
    templateID: str
    public: bool
