"""Endpoints that list sandboxes."""

from typing import Annotated, Literal

from fastapi import Depends, Query, Request
from fastapi.responses import Response

from firebrick.api import schemas
from firebrick.api.parameters import Moment, as_utc, parse_metadata_filter, parse_states, parse_template_filter
from firebrick.api.route import ControlOf, TeamOf, authenticated_router
from firebrick.api.wire import ListedBytes
from firebrick.control.listing import SandboxFilter
from firebrick.model.sandbox import SandboxState

router = authenticated_router("sandboxes")


async def _listed(request: Request) -> ListedBytes:
    listed: ListedBytes = request.app.state.listed
    return listed


ListedOf = Annotated[ListedBytes, Depends(_listed)]
V1_LIMIT = 10_000
"""The old list has no pages; a team's quota bounds it long before this."""


@router.get("/v2/sandboxes", response_model=list[schemas.ListedSandbox])
async def list_sandboxes_v2(
    control: ControlOf,
    team: TeamOf,
    listed: ListedOf,
    metadata: str | None = None,
    state: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    startedAfter: Moment | None = None,
    template: str | None = None,
    nextToken: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Response:
    """The team's sandboxes, newest first, page by page."""
    wanted = SandboxFilter(
        team_id=team.team_id,
        states=parse_states(state),
        template=parse_template_filter(template),
        metadata=parse_metadata_filter(metadata),
        started_after=as_utc(startedAfter),
        newest_first=order == "desc",
        limit=limit,
    )
    listing = await control.listing.list_page(wanted, nextToken)
    headers = {"X-Total-Running": str(listing.running_count)}
    if listing.next_token is not None:
        headers["X-Next-Token"] = listing.next_token
    return listed.answer(listing.sandboxes, headers)


@router.get("/sandboxes", response_model=list[schemas.ListedSandbox])
async def list_sandboxes(control: ControlOf, team: TeamOf, listed: ListedOf, metadata: str | None = None) -> Response:
    """The team's running sandboxes, all at once, as older clients ask for them."""
    wanted = SandboxFilter(
        team_id=team.team_id,
        states=frozenset({SandboxState.RUNNING}),
        metadata=parse_metadata_filter(metadata),
        limit=V1_LIMIT,
    )
    listing = await control.listing.list_page(wanted)
    return listed.answer(listing.sandboxes, {})
