"""Endpoints of snapshots. To clients a snapshot is a template that was taken rather than built."""

from typing import Annotated, Any

from fastapi import Body, Query
from fastapi.responses import Response
from pydantic import TypeAdapter

from firebrick.api import schemas
from firebrick.api.parameters import SandboxIdOf, parse_sandbox_id
from firebrick.api.route import ControlOf, TeamOf, authenticated_router
from firebrick.api.wire import WireResponse, answer, wire_snapshot
from firebrick.control.snapshots import SnapshotFilter, parse_name_filter

router = authenticated_router("snapshots")

_SNAPSHOTS = TypeAdapter(list[schemas.Snapshot])
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": schemas.Error} for status in (409, 413, 429, 503, 504)}


@router.post(
    "/sandboxes/{sandboxID}/snapshots", status_code=201, response_model=schemas.Snapshot, responses=ERRORS
)  # fmt: skip
async def create_snapshot(
    control: ControlOf,
    team: TeamOf,
    sandbox_id: SandboxIdOf,
    body: Annotated[schemas.SnapshotSandbox | None, Body()] = None,
) -> Response:
    """Save a sandbox's state; it goes on. A name that is in use means the new snapshot from now on."""
    wish = body or schemas.SnapshotSandbox()
    snapshot = await control.snapshots.create(
        team, sandbox_id, name=wish.name, keep_memory=wish.memory is not False
    )  # fmt: skip
    return answer(wire_snapshot(snapshot), 201)


@router.get("/snapshots", response_model=list[schemas.Snapshot])
async def list_snapshots(
    control: ControlOf,
    team: TeamOf,
    sandboxID: str | None = None,
    name: Annotated[str | None, Query(max_length=256)] = None,
    nextToken: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Response:
    """The team's snapshots, newest first, page by page."""
    names, tag = (None, None) if not name else parse_name_filter(name, team)
    wanted = SnapshotFilter(
        team_id=team.team_id,
        source_id=parse_sandbox_id(sandboxID) if sandboxID else None,
        names=names,
        tag=tag,
        limit=limit,
    )
    page = await control.snapshots.list_page(wanted, nextToken)
    headers = {} if page.next_token is None else {"X-Next-Token": page.next_token}
    return WireResponse(_SNAPSHOTS.dump_json([wire_snapshot(item) for item in page.snapshots]), headers=headers)


@router.delete("/templates/{templateID:path}", status_code=204, responses={403: {"model": schemas.Error}})
async def delete_template(control: ControlOf, team: TeamOf, templateID: str) -> Response:
    """Delete a snapshot by its id or name; with a tag only that one. Sandboxes that came from it live on."""
    await control.snapshots.delete(team, templateID)
    return Response(status_code=204)
