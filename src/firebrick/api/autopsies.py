"""Endpoints that tell why: ours, E2B has none. As everywhere, another team's sandbox is unknown."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import Response
from pydantic import TypeAdapter

from firebrick.api.parameters import SandboxIdOf
from firebrick.api.route import ControlOf, TeamOf, authenticated_router
from firebrick.api.schemas import Wire
from firebrick.api.wire import WireResponse, answer
from firebrick.control.autopsy import SandboxHappening

router = authenticated_router("autopsies")


class Happening(Wire):
    """`reason` is an end reason or an error's code; `facts` holds times of steps in ms and reasons of nodes."""

    sandboxID: str
    at: datetime
    kind: str
    actor: str
    reason: str
    detail: str
    facts: dict[str, Any]


class Autopsy(Wire):
    sandboxID: str
    summary: str
    state: str | None
    endReason: str | None
    createdAt: datetime | None
    endedAt: datetime | None
    events: list[Happening]


_HAPPENINGS = TypeAdapter(list[Happening])


@router.get("/sandboxes/endings", response_model=list[Happening])
async def list_endings(control: ControlOf, team: TeamOf, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Response:
    """The team's latest ends and failed creates, newest first."""
    found = await control.autopsies.list_endings(team.team_id, limit=limit)
    return WireResponse(_HAPPENINGS.dump_json([_wire(event) for event in found]))


@router.get("/sandboxes/{sandboxID}/why", response_model=Autopsy)
async def get_why(control: ControlOf, team: TeamOf, sandbox_id: SandboxIdOf) -> Response:
    """What happened to a sandbox: living, ended, or never created."""
    found = await control.autopsies.why(team.team_id, sandbox_id)
    sandbox = found.sandbox
    body = Autopsy(
        sandboxID=found.sandbox_id,
        summary=found.summary,
        state=None if sandbox is None else sandbox.state.value,
        endReason=None if sandbox is None or sandbox.end_reason is None else sandbox.end_reason.value,
        createdAt=None if sandbox is None else sandbox.created_at,
        endedAt=None if sandbox is None else sandbox.ended_at,
        events=[_wire(event) for event in found.events],
    )
    return answer(body)


def _wire(event: SandboxHappening) -> Happening:
    return Happening(
        sandboxID=event.sandbox_id,
        at=event.at,
        kind=event.kind,
        actor=event.actor,
        reason=event.reason,
        detail=event.detail,
        facts=dict(event.facts),
    )
