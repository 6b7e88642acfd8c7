"""Endpoints of a team's metrics."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

from fastapi.responses import Response
from pydantic import TypeAdapter

from firebrick.api import schemas
from firebrick.api.parameters import UnixSeconds, from_unix
from firebrick.api.route import ControlOf, TeamOf, authenticated_router
from firebrick.api.wire import WireResponse, answer, wire_team_metric
from firebrick.control.plane import ControlPlane
from firebrick.control.samples import TeamSample
from firebrick.model.errors import Forbidden, Invalid
from firebrick.model.team import Team

router = authenticated_router("teams")

WINDOW = timedelta(days=1)
"""What is looked at when no start is given."""
_METRICS = TypeAdapter(list[schemas.TeamMetric])
FORBIDDEN: dict[int | str, dict[str, Any]] = {403: {"model": schemas.Error}}


async def _samples(
    control: ControlPlane, team: Team, team_id: str, start: int | None, end: int | None
) -> Sequence[TeamSample]:
    if team_id != team.team_id:
        raise Forbidden("You don't have access to the metrics of this team.")
    until = from_unix(end) or control.platform.clock.now()
    since = from_unix(start) or until - WINDOW
    if since > until:
        raise Invalid("start must not be after end")
    return await control.observations.read_team(team.team_id, start=since, end=until)


@router.get("/teams/{teamID}/metrics", response_model=list[schemas.TeamMetric], responses=FORBIDDEN)
async def get_team_metrics(
    control: ControlOf, team: TeamOf, teamID: str, start: UnixSeconds = None, end: UnixSeconds = None
) -> Response:
    """How many sandboxes ran and were started, a sample every few seconds; the last day if no start is given."""
    samples = await _samples(control, team, teamID, start, end)
    return WireResponse(_METRICS.dump_json([wire_team_metric(sample) for sample in samples]))


@router.get("/teams/{teamID}/metrics/max", response_model=schemas.MaxTeamMetric, responses=FORBIDDEN)
async def get_max_team_metric(
    control: ControlOf,
    team: TeamOf,
    teamID: str,
    metric: Literal["concurrent_sandboxes", "sandbox_start_rate"],
    start: UnixSeconds = None,
    end: UnixSeconds = None,
) -> Response:
    """The highest sample between two times; 0 now where there is none."""
    samples = await _samples(control, team, teamID, start, end)

    def value(sample: TeamSample) -> float:
        return float(sample.running_count) if metric == "concurrent_sandboxes" else sample.start_rate

    top = max(samples, key=value, default=None)
    at = control.platform.clock.now() if top is None else top.at
    return answer(
        schemas.MaxTeamMetric(timestamp=at, timestampUnix=int(at.timestamp()), value=0.0 if top is None else value(top))
    )
