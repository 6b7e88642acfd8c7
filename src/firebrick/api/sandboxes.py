"""Endpoints of sandboxes: create, connect, look, prolong, kill."""

import re
from typing import Annotated, Any

from fastapi import Body, Header
from fastapi.responses import Response

from firebrick.api import schemas
from firebrick.api.errors import NotInThisVersion
from firebrick.api.parameters import SandboxIdOf
from firebrick.api.route import ControlOf, TeamOf, authenticated_router
from firebrick.api.wire import WireResponse, answer, wire_detail, wire_sandbox
from firebrick.control.plane import ControlPlane
from firebrick.control.sandboxes import Idempotency, NewSandbox, hash_body
from firebrick.model.errors import Invalid
from firebrick.model.sandbox import Sandbox

router = authenticated_router("sandboxes")

IDEMPOTENCY_KEY = re.compile(r"[a-z0-9-]{1,255}\Z")
REFRESH_DEFAULT_S = 15
"""What E2B prolongs by when a refresh names no duration."""


def _refuse_what_is_missing(body: schemas.NewSandboxV2) -> None:
    """A field that asks for what this version cannot do is refused by name; one that asks for nothing is fine."""
    if body.autoPauseMemory is False and not body.autoPause:
        raise Invalid("autoPauseMemory: false needs autoPause: true")
    wanted = {
        "autoPause: pausing sandboxes": body.autoPause,
        "autoResume: resuming sandboxes": body.autoResume is not None and body.autoResume.enabled,
        "network: setting network rules (but for allow_internet_access)": _asks(body.network),
        "volumeMounts: mounting volumes": body.volumeMounts,
        "iam: issuing identity tokens": _asks(body.iam),
    }
    for what, is_asked in wanted.items():
        if is_asked:
            raise NotInThisVersion(what)


def _asks(options: dict[str, Any] | None) -> bool:
    """True if any option differs from "not given"; `allowPublicTraffic: true` is how it is anyway."""
    for key, value in (options or {}).items():
        if value not in (None, [], {}) and (key, value) != ("allowPublicTraffic", True):
            return True
    return False


def _wish(body: schemas.NewSandboxV2, *, secure: bool) -> NewSandbox:
    _refuse_what_is_missing(body)
    return NewSandbox(
        template=body.templateID,
        timeout_s=body.timeout,
        metadata=body.metadata or {},
        env=body.envVars or {},
        secure=secure,
        allow_internet_access=body.allow_internet_access,
    )


def _answer(control: ControlPlane, sandbox: Sandbox, status: int) -> WireResponse:
    token = control.sandboxes.access_token(sandbox)
    return answer(wire_sandbox(sandbox, access_token=token, domain=control.config.sandbox_domain), status)


CREATE_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Error} for status in (403, 409, 413, 422, 429, 501, 503, 504)
}


@router.post("/v2/sandboxes", status_code=201, response_model=schemas.Sandbox, responses=CREATE_ERRORS)
async def create_sandbox_v2(
    control: ControlOf,
    team: TeamOf,
    body: schemas.NewSandboxV2,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """Create a sandbox. Always secured: its agent wants the token of the answer."""
    idempotency = None
    if idempotency_key is not None:
        if not IDEMPOTENCY_KEY.match(idempotency_key):
            raise Invalid("Idempotency-Key: 1 to 255 characters of a-z, 0-9 and '-'")
        idempotency = Idempotency(key=idempotency_key, body_hash=hash_body(body.model_dump_json().encode()))
    sandbox = await control.sandboxes.create(team, _wish(body, secure=True), idempotency)
    return _answer(control, sandbox, 201)


@router.post("/sandboxes", status_code=201, response_model=schemas.Sandbox, responses=CREATE_ERRORS)
async def create_sandbox(control: ControlOf, team: TeamOf, body: schemas.NewSandbox) -> Response:
    """Create a sandbox, as clients before 2.60 ask for it."""
    sandbox = await control.sandboxes.create(team, _wish(body, secure=bool(body.secure)))
    return _answer(control, sandbox, 201)


@router.get("/sandboxes/{sandboxID}", response_model=schemas.SandboxDetail)
async def get_sandbox(control: ControlOf, team: TeamOf, sandbox_id: SandboxIdOf) -> Response:
    """One sandbox in full."""
    sandbox = await control.sandboxes.fetch(team.team_id, sandbox_id)
    token = control.sandboxes.access_token(sandbox)
    return answer(wire_detail(sandbox, access_token=token, domain=control.config.sandbox_domain))


@router.delete("/sandboxes/{sandboxID}", status_code=204)
async def kill_sandbox(control: ControlOf, team: TeamOf, sandbox_id: SandboxIdOf) -> Response:
    """End a sandbox now."""
    await control.sandboxes.kill(team.team_id, sandbox_id)
    return Response(status_code=204)


@router.post("/v2/sandboxes/{sandboxID}/connect", response_model=schemas.Sandbox)
async def connect_sandbox_v2(
    control: ControlOf,
    team: TeamOf,
    sandbox_id: SandboxIdOf,
    body: Annotated[schemas.ConnectSandboxV2 | None, Body()] = None,
) -> Response:
    """Use a running sandbox for at least the timeout (300 s) from now."""
    timeout_s = (body or schemas.ConnectSandboxV2()).timeout
    return _answer(control, await control.sandboxes.connect(team, sandbox_id, timeout_s), 200)


@router.post("/sandboxes/{sandboxID}/connect", response_model=schemas.Sandbox)
async def connect_sandbox(
    control: ControlOf, team: TeamOf, sandbox_id: SandboxIdOf, body: schemas.ConnectSandbox
) -> Response:
    """Use a running sandbox for at least the timeout from now, as older clients ask for it."""
    return _answer(control, await control.sandboxes.connect(team, sandbox_id, body.timeout), 200)


@router.post("/sandboxes/{sandboxID}/timeout", status_code=204)
async def set_timeout(
    control: ControlOf, team: TeamOf, sandbox_id: SandboxIdOf, body: schemas.SandboxTimeout
) -> Response:
    """Set the time left, longer or shorter; 0 ends the sandbox at once."""
    await control.sandboxes.set_timeout(team, sandbox_id, body.timeout)
    return Response(status_code=204)


@router.post("/sandboxes/{sandboxID}/refreshes", status_code=204)
async def refresh_sandbox(
    control: ControlOf,
    team: TeamOf,
    sandbox_id: SandboxIdOf,
    body: Annotated[schemas.SandboxRefresh | None, Body()] = None,
) -> Response:
    """Make sure at least `duration` seconds are left."""
    given = None if body is None else body.duration
    await control.sandboxes.extend(team, sandbox_id, REFRESH_DEFAULT_S if given is None else given)
    return Response(status_code=204)
