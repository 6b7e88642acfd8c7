"""Endpoints of a sandbox's logs and metrics."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Query
from fastapi.responses import Response
from pydantic import TypeAdapter

from firebrick.api import schemas
from firebrick.api.parameters import SandboxIdOf, UnixMillis, UnixSeconds, from_unix, parse_sandbox_ids
from firebrick.api.route import ControlOf, TeamOf, authenticated_router
from firebrick.api.wire import WireResponse, answer, log_line, wire_log_entry, wire_metric
from firebrick.rpc.node_api import LogEntry

router = authenticated_router("sandboxes")

MAX_LINES = 10_000
"""Most lines asked of a node at once; it keeps fewer."""
LEVELS = {"debug": 0, "info": 1, "warn": 2, "error": 3}
Level = Literal["debug", "info", "warn", "error"]

_METRICS = TypeAdapter(list[schemas.SandboxMetric])


def select_lines(
    entries: Sequence[LogEntry], *, level: Level | None, search: str, limit: int, newest_first: bool, until_ms: int
) -> list[LogEntry]:
    """From lines, oldest first, those at least as grave as `level` that contain `search`, at most `limit`.
    Newest first: those before `until_ms` (0: all)."""
    least = LEVELS[level] if level is not None else 0
    fitting = [entry for entry in entries if LEVELS.get(entry.level, 1) >= least and search in entry.message]
    if not newest_first:
        return fitting[:limit]
    if until_ms:
        fitting = [entry for entry in fitting if entry.timestamp.timestamp() * 1000 < until_ms]
    return fitting[::-1][:limit]


@router.get("/sandboxes/{sandboxID}/logs", response_model=schemas.SandboxLogs)
async def get_logs(
    control: ControlOf,
    team: TeamOf,
    sandbox_id: SandboxIdOf,
    start: UnixMillis = 0,
    limit: Annotated[int, Query(ge=0, le=MAX_LINES)] = 1000,
) -> Response:
    """Log lines from `start` on, oldest first."""
    lines = await control.observations.read_logs(team.team_id, sandbox_id, start_ms=start, limit=limit)
    body = schemas.SandboxLogs(
        logs=[schemas.SandboxLog(timestamp=line.timestamp, line=log_line(line)) for line in lines],
        logEntries=[wire_log_entry(line) for line in lines],
    )
    return answer(body)


@router.get("/v2/sandboxes/{sandboxID}/logs", response_model=schemas.SandboxLogsV2)
async def get_logs_v2(
    control: ControlOf,
    team: TeamOf,
    sandbox_id: SandboxIdOf,
    cursor: UnixMillis = 0,
    limit: Annotated[int, Query(ge=0, le=1000)] = 1000,
    direction: Literal["forward", "backward"] = "forward",
    level: Level | None = None,
    search: Annotated[str, Query(max_length=256)] = "",
) -> Response:
    """Log lines after (forward) or before (backward) the cursor, the nearest to it first."""
    newest_first = direction == "backward"
    start_ms = 0 if newest_first else cursor
    entries = await control.observations.read_logs(team.team_id, sandbox_id, start_ms=start_ms, limit=MAX_LINES)
    lines = select_lines(
        entries, level=level, search=search, limit=limit, newest_first=newest_first, until_ms=cursor
    )  # fmt: skip
    return answer(schemas.SandboxLogsV2(logs=[wire_log_entry(line) for line in lines]))


@router.get("/sandboxes/metrics", response_model=schemas.SandboxesWithMetrics)
async def get_many_metrics(control: ControlOf, team: TeamOf, sandbox_ids: str) -> Response:
    """The latest reading of each of up to 100 sandboxes."""
    readings = await control.observations.read_latest(team.team_id, parse_sandbox_ids(sandbox_ids))
    metrics: dict[str, schemas.SandboxMetric] = {
        sandbox_id: wire_metric(usage, cpu_count=cpu_count) for sandbox_id, (usage, cpu_count) in readings.items()
    }
    return answer(schemas.SandboxesWithMetrics(sandboxes=metrics))


@router.get("/sandboxes/{sandboxID}/metrics", response_model=list[schemas.SandboxMetric])
async def get_metrics(
    control: ControlOf, team: TeamOf, sandbox_id: SandboxIdOf, start: UnixSeconds = None, end: UnixSeconds = None
) -> Response:
    """Readings between two times, oldest first: every few seconds for the last hour, about one a minute before."""
    readings, cpu_count = await control.observations.read_usage(
        team.team_id, sandbox_id, start=from_unix(start), end=from_unix(end)
    )
    metrics = [wire_metric(usage, cpu_count=cpu_count) for usage in readings]
    return WireResponse(_METRICS.dump_json(metrics))
