"""Endpoints that move snapshots between instances: ours, E2B has none. Bodies are streams, of any length."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect

from firebrick.api import schemas
from firebrick.api.route import CallerOf, ControlOf, StreamedRoute, TeamOf, guarded_router
from firebrick.api.wire import answer, wire_snapshot
from firebrick.control.identity import ADMIN
from firebrick.model.errors import Invalid

MEDIA_TYPE = "application/octet-stream"
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": schemas.Error} for status in (409, 429, 503, 504)}

router = guarded_router("snapshots", StreamedRoute)


class ImportedSnapshot(schemas.Snapshot):
    """`memoryRefusal`: why nothing goes on from its memory here; absent: it has none, or it does."""

    keepsMemory: bool
    memoryRefusal: str | None = None


@router.get(
    "/snapshots/{templateID:path}/archive",
    response_class=StreamingResponse,
    responses={200: {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def export_snapshot(control: ControlOf, team: TeamOf, templateID: str) -> Response:
    """A snapshot as one archive, with all that was in its files and memory: secrets too. An archive that does not end
    as it should was cut off."""
    return StreamingResponse(await control.moving.export(team, templateID), media_type=MEDIA_TYPE)


@router.post(
    "/snapshots/archive",
    status_code=201,
    response_model=ImportedSnapshot,
    responses=ERRORS,
    openapi_extra={
        "requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def import_snapshot(
    control: ControlOf,
    team: TeamOf,
    caller: CallerOf,
    request: Request,
    name: Annotated[str | None, Query(min_length=1, max_length=schemas.MAX_TEMPLATE_CHARS)] = None,
) -> Response:
    """Make a snapshot of an archive, under `name` or the one that it had. An archive that no instance with the same
    seal made is taken from the operator alone."""
    snapshot, refusal = await control.moving.take_in(
        team, _body(request), name=name, is_operator=caller.actor == ADMIN
    )  # fmt: skip
    fields = wire_snapshot(snapshot).model_dump() | {"keepsMemory": snapshot.keeps_memory}
    return answer(ImportedSnapshot(**fields | ({"memoryRefusal": refusal} if refusal else {})), 201)


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as exc:
        raise Invalid("It is cut off: whoever sent it has gone.") from exc
