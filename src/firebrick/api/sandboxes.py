"""Endpoints of sandboxes: create, look, prolong, kill."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Body, Header
from fastapi.responses import Response

from firebrick.api import schemas
from firebrick.api.errors import NotInThisVersion
from firebrick.api.parameters import SandboxIdOf
from firebrick.api.route import ControlOf, TeamOf, authenticated_router
from firebrick.api.sandbox_network import checked_network
from firebrick.api.wire import WireResponse, answer, wire_detail, wire_sandbox
from firebrick.control.plane import ControlPlane
from firebrick.control.sandboxes import MEMORY_KEY, Idempotency, NewSandbox, hash_body
from firebrick.model.errors import Invalid
from firebrick.model.sandbox import OnTimeout, Sandbox

router = authenticated_router("sandboxes")

IDEMPOTENCY_KEY = re.compile(r"[a-z0-9-]{1,255}\Z")
IDLE_TIMEOUT_KEY = "firebrick.idleTimeout"
DISK_KEY = "firebrick.diskMiB"
MOST_DISK_DIGITS = 9
IDLE_LEAST_S = 15
"""Three samples of use: fewer could not tell a pause for thought from idleness."""
IDLE_MOST_S = 30 * 86_400
REFRESH_DEFAULT_S = 15
"""What E2B prolongs by when a refresh names no duration."""


def _refuse_what_is_missing(body: schemas.NewSandboxV2) -> None:
    """A field that asks for what this version cannot do is refused by name; one that asks for nothing is fine."""
    wanted = {
        "volumeMounts: mounting volumes": body.volumeMounts,
        "iam: issuing identity tokens": _asks(body.iam),
    }
    for what, is_asked in wanted.items():
        if is_asked:
            raise NotInThisVersion(what)


def _asks(options: dict[str, Any] | None) -> bool:
    """True if any option differs from "not given"."""
    return any(value not in (None, [], {}) for value in (options or {}).values())


def _wish(body: schemas.NewSandboxV2, *, secure: bool) -> NewSandbox:
    _refuse_what_is_missing(body)
    does_resume = body.autoResume is not None and bool(body.autoResume.enabled)
    if body.autoPauseMemory is False and not body.autoPause:
        raise Invalid("autoPauseMemory: false needs autoPause: true")
    if body.autoPauseMemory is False and does_resume:
        raise Invalid("autoPauseMemory: false cannot be combined with autoResume: traffic cannot resume such a sandbox")
    metadata = body.metadata or {}
    return NewSandbox(
        template=body.templateID,
        timeout_s=body.timeout,
        metadata=metadata,
        env=body.envVars or {},
        secure=secure,
        allow_internet_access=body.allow_internet_access,
        on_timeout=OnTimeout.PAUSE if body.autoPause else OnTimeout.KILL,
        auto_pause_memory=body.autoPauseMemory is not False,
        auto_resume=does_resume,
        idle_timeout_s=idle_timeout_of(metadata),
        keep_memory=keeps_memory(metadata),
        disk_mib=disk_mib_of(metadata),
        network=None
        if body.network is None
        else checked_network(body.network, allow_internet_access=body.allow_internet_access, secure=secure),
    )


def idle_timeout_of(metadata: Mapping[str, str]) -> int | None:
    """An option of ours travels as metadata, because E2B's clients can send nothing else.

    Raises: Invalid.
    """
    text = metadata.get(IDLE_TIMEOUT_KEY)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or not IDLE_LEAST_S <= int(text[:9]) <= IDLE_MOST_S:
        raise Invalid(f"metadata {IDLE_TIMEOUT_KEY}: whole seconds from {IDLE_LEAST_S} to {IDLE_MOST_S}")
    return int(text)


def keeps_memory(metadata: Mapping[str, str]) -> bool:
    """Whether what is created from a snapshot with memory goes on from that. Raises Invalid."""
    text = metadata.get(MEMORY_KEY, "true")
    if text not in ("true", "false"):
        raise Invalid(f"metadata {MEMORY_KEY}: true or false")
    return text == "true"


def disk_mib_of(metadata: Mapping[str, str]) -> int | None:
    """How large its disk is to be; None: as its source's. Raises Invalid."""
    text = metadata.get(DISK_KEY)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > MOST_DISK_DIGITS:
        raise Invalid(f"metadata {DISK_KEY}: whole MiB")
    return int(text)


def sandbox_answer(control: ControlPlane, sandbox: Sandbox, status: int) -> WireResponse:
    return answer(sandbox_with_tokens(control, sandbox), status)


def sandbox_with_tokens(control: ControlPlane, sandbox: Sandbox) -> schemas.Sandbox:
    """What the owner needs to use it."""
    return wire_sandbox(
        sandbox,
        access_token=control.sandboxes.access_token(sandbox),
        traffic_token=control.sandboxes.traffic_token(sandbox),
        domain=control.config.sandbox_domain,
    )


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
    return sandbox_answer(control, sandbox, 201)


@router.post("/sandboxes", status_code=201, response_model=schemas.Sandbox, responses=CREATE_ERRORS)
async def create_sandbox(control: ControlOf, team: TeamOf, body: schemas.NewSandbox) -> Response:
    """Create a sandbox, as clients before 2.60 ask for it."""
    sandbox = await control.sandboxes.create(team, _wish(body, secure=bool(body.secure)))
    return sandbox_answer(control, sandbox, 201)


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
