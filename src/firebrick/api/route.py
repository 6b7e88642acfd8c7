"""The kinds of route. Whoever adds an endpoint chooses one: authenticated is the router's default, the others must be
said. A test walks the whole router and holds that.

    authenticated   somebody acts for a team: a key, a user with X-Team-ID, the operator with X-Team-ID
    streamed        likewise, and the body is read while it comes
    managed         the same without keys: for what a leaked key must not do
    user            a user, of whatever team
    admin           the operator
    public          nobody in particular

All but the last check credentials before they read a byte of the body: first 401, then everything else. A change
gets its line in the audit log before it is answered.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import Message

from firebrick.api.errors import TooLarge
from firebrick.api.schemas import Error
from firebrick.control.actor import Request as ActingFor
from firebrick.control.actor import acting
from firebrick.control.audit import OK
from firebrick.control.identity import Caller, Credentials
from firebrick.control.plane import ControlPlane
from firebrick.log import bound
from firebrick.model.errors import FirebrickError
from firebrick.model.team import Team, User

KEY_HEADER = "X-API-Key"
TEAM_HEADER = "X-Team-ID"
ADMIN_HEADER = "X-Admin-Token"
BEARER = "bearer "
MAX_BODY_BYTES = 1024 * 1024
"""Far above any create that passes the bounds of its fields."""
NO_CHANGE = frozenset({"invalid", "too_large", "limit_exceeded", "rate_exceeded"})
"""Outcomes that are not written to the audit log: nothing was even tried, and a loop of them would fill it."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_key_scheme = APIKeyHeader(name=KEY_HEADER, scheme_name="ApiKeyAuth", auto_error=False)
_bearer_scheme = HTTPBearer(scheme_name="AccessTokenAuth", auto_error=False)
_admin_scheme = APIKeyHeader(name=ADMIN_HEADER, scheme_name="AdminApiKeyAuth", auto_error=False)


def _credentials(request: Request) -> Credentials:
    headers = request.headers
    authorization = headers.get("Authorization", "")
    is_bearer = authorization.lower().startswith(BEARER)
    return Credentials(
        api_key=headers.get(KEY_HEADER),
        bearer=authorization[len(BEARER) :].strip() if is_bearer else None,
        team_id=headers.get(TEAM_HEADER),
        admin_token=headers.get(ADMIN_HEADER),
    )


class GuardedRoute(APIRoute):
    """A route that somebody must have the right to."""

    async def identify(self, control: ControlPlane, given: Credentials) -> Caller:
        """Raises Unauthenticated, Forbidden."""
        raise AssertionError("each kind of route says who may use it")

    async def with_body(self, request: Request) -> Request:
        """The request as its handler gets it. Raises TooLarge."""
        return await _bounded(request)

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            control: ControlPlane = request.app.state.control
            caller = await self.identify(control, _credentials(request))
            request.state.caller = caller
            team_id = caller.team.team_id if caller.team is not None else ""
            with bound(team_id=team_id), acting(ActingFor(actor=caller.actor)) as acted:
                if request.method in READING:
                    return await handler(await self.with_body(request))
                return await self._audited(request, handler, control, team_id, acted)

        return guarded

    async def _audited(
        self, request: Request, handler: Handler, control: ControlPlane, team_id: str, acted: ActingFor
    ) -> Response:
        outcome = "internal"
        try:
            response = await handler(await self.with_body(request))
            outcome = OK if response.status_code < 400 else str(response.status_code)
            return response
        except (FirebrickError, RequestValidationError, HTTPException) as exc:
            outcome = exc.code if isinstance(exc, FirebrickError) else "invalid"
            raise
        finally:
            if outcome not in NO_CHANGE and not (acted.is_audited and outcome == OK):
                about = acted.object_id or "/".join(str(value) for value in request.path_params.values())
                await control.audit.record(
                    f"{request.method} {self.path}", team_id=team_id, object_id=about, outcome=outcome
                )  # fmt: skip


class AuthenticatedRoute(GuardedRoute):
    async def identify(self, control: ControlPlane, given: Credentials) -> Caller:
        return await control.identity.team_caller(given)


class StreamedRoute(AuthenticatedRoute):
    """Its handler reads the body itself, piece by piece, and bounds it."""

    async def with_body(self, request: Request) -> Request:
        return request


class ManagedRoute(GuardedRoute):
    async def identify(self, control: ControlPlane, given: Credentials) -> Caller:
        return await control.identity.manager_caller(given)


class UserRoute(GuardedRoute):
    async def identify(self, control: ControlPlane, given: Credentials) -> Caller:
        return await control.identity.user_caller(given)


class AdminRoute(GuardedRoute):
    async def identify(self, control: ControlPlane, given: Credentials) -> Caller:
        return control.identity.admin_caller(given)


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


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": text}
    for status, text in (
        (400, "Bad request"),
        (401, "No or wrong credentials"),
        (403, "Valid credentials, but not for that team"),
        (404, "Not found"),
        (413, "The body is too large"),
        (500, "Our fault"),
        (503, "A part of ours does not answer at the moment"),
    )
}
_SCHEMES: dict[type[GuardedRoute], tuple[Any, ...]] = {
    AuthenticatedRoute: (_key_scheme, _bearer_scheme, _admin_scheme),
    StreamedRoute: (_key_scheme, _bearer_scheme, _admin_scheme),
    ManagedRoute: (_bearer_scheme, _admin_scheme),
    UserRoute: (_bearer_scheme,),
    AdminRoute: (_admin_scheme,),
}


def guarded_router(tag: str, kind: type[GuardedRoute]) -> APIRouter:
    """A router whose routes are of that kind."""
    return APIRouter(
        route_class=kind,
        tags=[tag],
        responses=_ERRORS,
        dependencies=[Security(scheme) for scheme in _SCHEMES[kind]],
    )


def authenticated_router(tag: str) -> APIRouter:
    return guarded_router(tag, AuthenticatedRoute)


async def _control(request: Request) -> ControlPlane:
    control: ControlPlane = request.app.state.control
    return control


async def _team(request: Request) -> Team:
    caller: Caller = request.state.caller
    assert caller.team is not None
    return caller.team


async def _user(request: Request) -> User:
    caller: Caller = request.state.caller
    assert caller.user is not None
    return caller.user


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


ControlOf = Annotated[ControlPlane, Depends(_control)]
TeamOf = Annotated[Team, Depends(_team)]
UserOf = Annotated[User, Depends(_user)]
CallerOf = Annotated[Caller, Depends(_caller)]
