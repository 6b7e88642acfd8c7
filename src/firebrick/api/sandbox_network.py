"""Network options: checked at create, replaced while a sandbox runs."""

from typing import Any

from fastapi.responses import Response

from firebrick.api import schemas
from firebrick.api.errors import NotInThisVersion
from firebrick.api.parameters import SandboxIdOf
from firebrick.api.route import ControlOf, TeamOf, authenticated_router
from firebrick.model.egress import check_network

router = authenticated_router("sandboxes")


def checked_network(body: schemas.NetworkRules, *, allow_internet_access: bool | None, secure: bool) -> dict[str, Any]:
    """The options that were given, as they were asked.

    Raises: Invalid; NotInThisVersion — for an option with effect that this version has not.
    """
    options = body.model_dump(exclude_none=True, exclude={"allow_internet_access"})
    missing = check_network(options, allow_internet_access=allow_internet_access, secure=secure)
    if missing:
        raise NotInThisVersion(", ".join(missing))
    return options


@router.put(
    "/sandboxes/{sandboxID}/network",
    status_code=204,
    responses={status: {"model": schemas.Error} for status in (409, 501, 503)},
)
async def update_network(
    control: ControlOf, team: TeamOf, sandbox_id: SandboxIdOf, body: schemas.SandboxNetworkUpdate
) -> Response:
    """Replace where a running sandbox may connect to; what is left out is lifted, an empty body opens everything."""
    options = checked_network(body, allow_internet_access=body.allow_internet_access, secure=True)
    await control.networking.update(
        team.team_id, sandbox_id, allow_internet_access=body.allow_internet_access, options=options
    )
    return Response(status_code=204)
