"""Endpoints of sandboxes between running and paused: pause, connect, resume, fork, recover."""

from typing import Annotated, Any

from fastapi import Body
from fastapi.responses import Response
from pydantic import TypeAdapter

from firebrick.api import schemas
from firebrick.api.errors import status_of
from firebrick.api.parameters import SandboxIdOf
from firebrick.api.route import ControlOf, TeamOf, authenticated_router
from firebrick.api.sandboxes import sandbox_answer, sandbox_with_tokens
from firebrick.api.wire import WireResponse, answer, wire_detail
from firebrick.control.plane import ControlPlane
from firebrick.model.errors import FirebrickError
from firebrick.model.sandbox import OnTimeout, Sandbox

router = authenticated_router("sandboxes")

CONNECT_DEFAULT_S = 300
_FORKS = TypeAdapter(list[schemas.ForkResult])

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Error} for status in (409, 413, 429, 501, 503, 504)
}  # fmt: skip
CONNECT_ANSWERS: dict[int | str, dict[str, Any]] = ERRORS | {
    201: {"model": schemas.Sandbox, "description": "It was paused and has been resumed"}
}


@router.post("/sandboxes/{sandboxID}/pause", status_code=204, responses=ERRORS)
async def pause_sandbox(
    control: ControlOf,
    team: TeamOf,
    sandbox_id: SandboxIdOf,
    body: Annotated[schemas.PauseSandbox | None, Body()] = None,
) -> Response:
    """Pause a sandbox: with its memory, or with `memory: false` its disk only. It is paused when this answers."""
    wish = body or schemas.PauseSandbox()
    await control.pausing.pause(
        team.team_id,
        sandbox_id,
        keep_memory=wish.memory is not False,
        require_healthy=bool(wish.requireHealthyGuest),
    )
    return Response(status_code=204)


@router.post("/sandboxes/{sandboxID}/resume", status_code=201, response_model=schemas.Sandbox, responses=ERRORS)
async def resume_sandbox(
    control: ControlOf,
    team: TeamOf,
    sandbox_id: SandboxIdOf,
    body: Annotated[schemas.ResumeSandbox | None, Body()] = None,
) -> Response:
    """Resume a paused sandbox, as older clients ask for it. Use connect instead."""
    wish = body or schemas.ResumeSandbox()
    on_timeout = None if wish.autoPause is None else OnTimeout.PAUSE if wish.autoPause else OnTimeout.KILL
    sandbox = await control.pausing.resume(
        team, sandbox_id, wish.timeout, keep_memory=wish.memory is not False, on_timeout=on_timeout
    )
    return sandbox_answer(control, sandbox, 201)


@router.post("/v2/sandboxes/{sandboxID}/connect", response_model=schemas.Sandbox, responses=CONNECT_ANSWERS)
async def connect_sandbox_v2(
    control: ControlOf,
    team: TeamOf,
    sandbox_id: SandboxIdOf,
    body: Annotated[schemas.ConnectSandboxV2 | None, Body()] = None,
) -> Response:
    """Use a sandbox for at least the timeout from now; a paused one is resumed, `memory: false` starts it anew.

    Without a timeout: 300 s, and for a paused one the timeout that it was configured with if that is longer.
    """
    wish = body or schemas.ConnectSandboxV2()
    return await _connect(control, team, sandbox_id, wish.timeout, keep_memory=wish.memory is not False)


@router.post("/sandboxes/{sandboxID}/connect", response_model=schemas.Sandbox, responses=CONNECT_ANSWERS)
async def connect_sandbox(
    control: ControlOf, team: TeamOf, sandbox_id: SandboxIdOf, body: schemas.ConnectSandbox
) -> Response:
    """Use a sandbox for at least the timeout from now, as older clients ask for it; a paused one is resumed."""
    return await _connect(control, team, sandbox_id, body.timeout, keep_memory=body.memory is not False)


async def _connect(
    control: ControlPlane, team: TeamOf, sandbox_id: SandboxIdOf, timeout_s: int | None, *, keep_memory: bool
) -> Response:
    sandbox, is_resumed = await control.pausing.connect(
        team, sandbox_id, timeout_s, default_s=CONNECT_DEFAULT_S, keep_memory=keep_memory
    )
    return sandbox_answer(control, sandbox, 201 if is_resumed else 200)


@router.post(
    "/sandboxes/{sandboxID}/fork", status_code=201, response_model=list[schemas.ForkResult], responses=ERRORS
)  # fmt: skip
async def fork_sandbox(
    control: ControlOf,
    team: TeamOf,
    sandbox_id: SandboxIdOf,
    body: Annotated[schemas.ForkSandbox | None, Body()] = None,
) -> Response:
    """Create sandboxes that start as this one is now; one result for each, a sandbox or why there is none."""
    wish = body or schemas.ForkSandbox()
    results = await control.snapshots.fork(team, sandbox_id, count=wish.count, timeout_s=wish.timeout)
    return WireResponse(
        _FORKS.dump_json([_fork_result(control, item) for item in results], exclude_unset=True), status_code=201
    )


def _fork_result(control: ControlPlane, result: Sandbox | FirebrickError) -> schemas.ForkResult:
    if isinstance(result, FirebrickError):
        return schemas.ForkResult(error=schemas.Error(code=status_of(result), message=result.message))
    return schemas.ForkResult(sandbox=sandbox_with_tokens(control, result))


@router.post("/sandboxes/{sandboxID}/recover", response_model=schemas.SandboxDetail, responses=ERRORS)
async def recover_sandbox(control: ControlOf, team: TeamOf, sandbox_id: SandboxIdOf) -> Response:
    """Bring back a sandbox that its timeout ended, as a paused one with its disk, while the grace bin has it."""
    sandbox = await control.pausing.recover(team.team_id, sandbox_id)
    token = control.sandboxes.access_token(sandbox)
    return answer(wire_detail(sandbox, access_token=token, domain=control.config.sandbox_domain))
