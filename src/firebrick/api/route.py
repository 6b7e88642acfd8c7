"""The two kinds of route. Whoever adds an endpoint chooses one: authenticated is the router's default, `public` must be
said. A test walks the whole router and holds that.

An authenticated route checks the key before it reads a byte of the body: first 401, then everything else.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Security
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from starlette.types import Message

from firebrick.api.errors import TooLarge
from firebrick.api.schemas import Error
from firebrick.control.plane import ControlPlane
from firebrick.log import bound
from firebrick.model.team import Team

KEY_HEADER = "X-API-Key"
MAX_BODY_BYTES = 1024 * 1024
"""Far above any create that passes the bounds of its fields."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_key_scheme = APIKeyHeader(name=KEY_HEADER, scheme_name="ApiKeyAuth", auto_error=False)


class AuthenticatedRoute(APIRoute):
    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def authenticated(request: Request) -> Response:
            control: ControlPlane = request.app.state.control
            team = await control.teams.authenticate(request.headers.get(KEY_HEADER))
            request.state.team = team
            with bound(team_id=team.team_id):
                return await handler(await _bounded(request))

        return authenticated


class PublicRoute(APIRoute):
    """Needs no key. Only for what tells a stranger nothing."""


async def _bounded(request: Request) -> Request:
    """The same request with its body read, and refused where it exceeds the bound, announced or not.

    NOTE: read here, because FastAPI answers 400 for whatever goes wrong while it reads a body.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    chunks: list[bytes] = []
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > MAX_BODY_BYTES:
            raise _too_large()
        chunks.append(chunk)
    body = b"".join(chunks)

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive)


def _too_large() -> TooLarge:
    return TooLarge(f"The request's body is too large: at most {MAX_BODY_BYTES} bytes are accepted.")


def authenticated_router(tag: str) -> APIRouter:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": Error, "description": text}
        for status, text in (
            (400, "Bad request"),
            (401, "No or wrong API key"),
            (404, "Not found"),
            (500, "Our fault"),
        )
    }
    return APIRouter(
        route_class=AuthenticatedRoute, tags=[tag], responses=errors, dependencies=[Security(_key_scheme)]
    )  # fmt: skip


async def _control(request: Request) -> ControlPlane:
    control: ControlPlane = request.app.state.control
    return control


async def _team(request: Request) -> Team:
    team: Team = request.state.team
    return team


ControlOf = Annotated[ControlPlane, Depends(_control)]
TeamOf = Annotated[Team, Depends(_team)]
