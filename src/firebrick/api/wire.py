"""From what the control plane knows to what travels, and to bytes. Answers are serialised here, once: FastAPI would
check every field of our own objects a second time, which costs more than the query."""

import json
from collections import OrderedDict
from collections.abc import Iterable
from math import ceil
from typing import Any, Literal

from fastapi.responses import Response
from pydantic import BaseModel

from firebrick.api import schemas
from firebrick.control.samples import TeamSample, UsageSample
from firebrick.control.templates import TemplateWithBuilds
from firebrick.model.ids import SandboxId
from firebrick.model.machine import Limits
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.model.snapshot import Snapshot
from firebrick.rpc.node_api import LogEntry

ENVD_VERSION = "0.6.13"
"""The version of E2B's guest agent whose behaviour ours has; clients switch features on by it."""
CLIENT_ID = "firebrick"
"""E2B's clients demand the field and use it for nothing."""

LISTED_COUNT = 5000
"""Kept as bytes, about 0.5 KiB each."""


class WireResponse(Response):
    """JSON that is bytes already."""

    media_type = "application/json"


def answer(body: BaseModel, status: int = 200) -> WireResponse:
    """Fields that were not given are left out, not sent as null."""
    return WireResponse(body.__pydantic_serializer__.to_json(body, exclude_unset=True), status_code=status)


class ListedBytes:
    """Listed sandboxes as bytes, kept while their row does not change: a list is asked far more often than its
    sandboxes change, and making them is most of its cost."""

    def __init__(self) -> None:
        self._kept: OrderedDict[SandboxId, tuple[int, bytes]] = OrderedDict()

    def answer(self, sandboxes: Iterable[Sandbox], headers: dict[str, str]) -> WireResponse:
        return WireResponse(b"[" + b",".join(map(self._bytes, sandboxes)) + b"]", headers=headers)

    def _bytes(self, sandbox: Sandbox) -> bytes:
        kept = self._kept.get(sandbox.sandbox_id)
        if kept is not None and kept[0] == sandbox.generation:
            return kept[1]
        body = wire_listed(sandbox)
        made = body.__pydantic_serializer__.to_json(body, exclude_unset=True)
        self._kept[sandbox.sandbox_id] = (sandbox.generation, made)
        if len(self._kept) > LISTED_COUNT:
            self._kept.popitem(last=False)
        return made


def wire_sandbox(
    sandbox: Sandbox, *, access_token: str | None, traffic_token: str | None, domain: str
) -> schemas.Sandbox:
    fields: dict[str, Any] = {
        "templateID": sandbox.template_id,
        "sandboxID": sandbox.sandbox_id,
        "clientID": CLIENT_ID,
        "envdVersion": ENVD_VERSION,
        "trafficAccessToken": traffic_token,
        "domain": domain,
        **_optional(sandbox),
    }
    if access_token is not None:
        fields["envdAccessToken"] = access_token
    return schemas.Sandbox(**fields)


def wire_listed(sandbox: Sandbox) -> schemas.ListedSandbox:
    return schemas.ListedSandbox(**_listed_fields(sandbox))


def wire_detail(sandbox: Sandbox, *, access_token: str | None, domain: str) -> schemas.SandboxDetail:
    fields = _listed_fields(sandbox) | {
        "allowInternetAccess": sandbox.allow_internet_access,
        "domain": domain,
        "lifecycle": schemas.SandboxLifecycle(autoResume=sandbox.auto_resume, onTimeout=sandbox.on_timeout.value),
    }
    if sandbox.network is not None:
        fields["network"] = sandbox.network
    if sandbox.state is SandboxState.PAUSED:
        fields["pauseMode"] = "full" if sandbox.keeps_memory else "filesystem"
    if access_token is not None:
        fields["envdAccessToken"] = access_token
    return schemas.SandboxDetail(**fields)


def _listed_fields(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "templateID": sandbox.template_id,
        "sandboxID": sandbox.sandbox_id,
        "clientID": CLIENT_ID,
        "startedAt": sandbox.started_at,
        "endAt": sandbox.expires_at,
        **_sizes(sandbox.limits),
        "state": _state(sandbox.state),
        "envdVersion": ENVD_VERSION,
        "metadata": sandbox.metadata,
        **_optional(sandbox),
    }


def _state(state: SandboxState) -> Literal["running", "paused"]:
    """One in the middle of pausing or resuming is reported paused, as E2B does."""
    return "running" if state is SandboxState.RUNNING else "paused"


def _optional(sandbox: Sandbox) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if sandbox.template_alias is not None:
        fields["alias"] = sandbox.template_alias
    if sandbox.runtime is not None:
        fields |= {"runtime": sandbox.runtime.value, "isolation": sandbox.runtime.isolation.value}
    if sandbox.state is SandboxState.PAUSED:
        fields |= {
            "keepsMemory": bool(sandbox.keeps_memory),
            "envdUnresponsiveAtPause": sandbox.silent_at_pause,
        }
    return fields


def _sizes(limits: Limits) -> dict[str, int]:
    return {
        "cpuCount": ceil(limits.millicpu / 1000),
        "memoryMB": limits.memory_mib,
        "diskSizeMB": limits.disk_mib,
    }


def wire_metric(sample: UsageSample, *, cpu_count: int) -> schemas.SandboxMetric:
    return schemas.SandboxMetric(
        timestamp=sample.at,
        timestampUnix=int(sample.at.timestamp()),
        cpuCount=cpu_count,
        cpuUsedPct=sample.cpu_used_pct,
        memUsed=sample.memory_bytes,
        memTotal=sample.memory_limit_bytes,
        memCache=0,
        diskUsed=sample.disk_bytes,
        diskTotal=sample.disk_limit_bytes,
    )


def wire_team_metric(sample: TeamSample) -> schemas.TeamMetric:
    return schemas.TeamMetric(
        timestamp=sample.at,
        timestampUnix=int(sample.at.timestamp()),
        concurrentSandboxes=sample.running_count,
        sandboxStartRate=sample.start_rate,
    )


def wire_snapshot(snapshot: Snapshot) -> schemas.Snapshot:
    return schemas.Snapshot(snapshotID=snapshot.shown_id, names=[] if snapshot.name is None else [snapshot.name])


def log_line(entry: LogEntry) -> str:
    """A line as the older log endpoint has it: JSON in a string, with level and logger, which E2B's CLI takes apart."""
    return json.dumps(
        {**entry.fields, "level": entry.level, "logger": entry.fields.get("logger", "envd"), "message": entry.message},
        ensure_ascii=False,
    )


def wire_log_entry(entry: LogEntry) -> schemas.SandboxLogEntry:
    level: Any = entry.level if entry.level in ("debug", "info", "warn", "error") else "info"
    return schemas.SandboxLogEntry(
        timestamp=entry.timestamp, message=entry.message, level=level, fields=dict(entry.fields)
    )  # fmt: skip


def wire_template(item: TemplateWithBuilds) -> schemas.Template | None:
    """None for a template of which nothing was built yet: E2B's shape cannot say that."""
    build = item.ready
    if build is None:
        return None
    template = item.template
    return schemas.Template(
        templateID=template.template_id,
        buildID=build.build_id,
        **_sizes(build.limits),
        public=template.team_id is None,
        aliases=[template.alias],
        names=[template.alias],
        createdAt=template.created_at,
        updatedAt=build.created_at,
        createdBy=None,
        lastSpawnedAt=item.last_spawned_at,
        spawnCount=item.spawn_count,
        buildCount=len(item.builds),
        envdVersion=ENVD_VERSION,
        buildStatus=build.state.value,
    )
