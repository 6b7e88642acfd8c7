"""What E2B's API has and this version of Firebrick has not: one table, one clear answer (501) instead of a bare 404."""

from fastapi.responses import Response

from firebrick.api.errors import NotInThisVersion
from firebrick.api.route import authenticated_router

router = authenticated_router("not in this version")

BUILD = "Building and changing templates"
VOLUMES = "Using volumes"
SECRETS = "Using secrets"

NOT_AVAILABLE: tuple[tuple[str, str, str], ...] = (
    ("POST", "/v3/templates", BUILD),
    ("GET", "/templates/{templateID}/files/{hash}", BUILD),
    ("POST", "/v2/templates/{templateID}/builds/{buildID}", BUILD),
    ("GET", "/templates/{templateID}/builds/{buildID}/status", BUILD),
    ("GET", "/templates/{templateID}/builds/{buildID}/logs", BUILD),
    ("PATCH", "/v2/templates/{templateID}", BUILD),
    ("PATCH", "/templates/{templateID}", BUILD),
    ("POST", "/templates/tags", BUILD),
    ("DELETE", "/templates/tags", BUILD),
    ("GET", "/templates/{templateID}/tags", BUILD),
    ("GET", "/volumes", VOLUMES),
    ("POST", "/volumes", VOLUMES),
    ("GET", "/volumes/{volumeID}", VOLUMES),
    ("DELETE", "/volumes/{volumeID}", VOLUMES),
    ("GET", "/secrets", SECRETS),
    ("POST", "/secrets", SECRETS),
    ("GET", "/secrets/{secretID}", SECRETS),
    ("POST", "/secrets/{secretID}", SECRETS),
    ("DELETE", "/secrets/{secretID}", SECRETS),
)


def _add(method: str, path: str, what: str) -> None:
    async def refuse() -> Response:
        raise NotInThisVersion(what)

    router.add_api_route(path, refuse, methods=[method], include_in_schema=False)


for _method, _path, _what in NOT_AVAILABLE:
    _add(_method, _path, _what)
