"""Endpoints of the operator: teams, quotas, users, nodes, the audit log."""

from typing import Annotated

from fastapi import Body, Query
from fastapi.responses import Response
from pydantic import TypeAdapter

from firebrick.api import owner_schemas as schemas
from firebrick.api.owner_wire import (
    key_fields,
    read_limits,
    wire_audit,
    wire_mask,
    wire_node,
    wire_team,
    wire_user,
)
from firebrick.api.route import AdminRoute, ControlOf, guarded_router
from firebrick.api.wire import WireResponse, answer
from firebrick.model.ids import KeyId, NodeId, TeamId, UserId

router = guarded_router("admin", AdminRoute)

_TEAMS = TypeAdapter(list[schemas.AdminTeam])
_USERS = TypeAdapter(list[schemas.AdminUser])
_NODES = TypeAdapter(list[schemas.Node])
_LINES = TypeAdapter(list[schemas.AuditLine])
_COUNTS = TypeAdapter(dict[str, int])


@router.get("/admin/teams", response_model=list[schemas.AdminTeam])
async def list_all_teams(control: ControlOf) -> Response:
    """Every team with its quota."""
    return WireResponse(_TEAMS.dump_json([wire_team(team) for team in await control.teams.list_all()]))


@router.post("/admin/teams", status_code=201, response_model=schemas.AdminTeam, responses={409: {}})
async def create_team(control: ControlOf, body: schemas.NewTeam) -> Response:
    """A new team. It has no key yet."""
    return answer(wire_team(await control.teams.create(body.name, read_limits(body))), 201)


@router.patch("/admin/teams/{teamID}", response_model=schemas.AdminTeam)
async def set_quota(control: ControlOf, teamID: str, body: schemas.Quota) -> Response:
    """Change a team's quota; it holds for the next create."""
    return answer(wire_team(await control.teams.set_limits(TeamId(teamID), read_limits(body))))


@router.post("/admin/teams/{teamID}/sandboxes/kill", response_model=schemas.KillResult)
async def kill_all_of_team(control: ControlOf, teamID: str) -> Response:
    """End every sandbox of a team."""
    team = await control.teams.fetch(TeamId(teamID))
    killed, failed = await control.sandboxes.kill_all(team.team_id)
    return answer(schemas.KillResult(killedCount=killed, failedCount=failed))


@router.get("/admin/sandboxes/running-counts", response_model=dict[str, int])
async def count_running(control: ControlOf) -> Response:
    """How many sandboxes run, for each team that has any."""
    counts = {str(team_id): count for team_id, count in (await control.teams.running_counts()).items()}
    return WireResponse(_COUNTS.dump_json(counts))


@router.post("/admin/teams/{teamID}/api-keys", status_code=201, response_model=schemas.CreatedTeamApiKey)
async def create_team_key(control: ControlOf, teamID: str, body: schemas.NewKey) -> Response:
    """A new API key of a team, shown once."""
    team = await control.teams.fetch(TeamId(teamID))
    key, plain = await control.keys.create(team.team_id, body.name)
    return answer(schemas.CreatedTeamApiKey(key=plain, **key_fields(key, {})), 201)  # type: ignore[arg-type]


@router.delete("/admin/teams/{teamID}/api-keys/{apiKeyID}", status_code=204)
async def delete_team_key(control: ControlOf, teamID: str, apiKeyID: str) -> Response:
    """Revoke a key of a team; it opens nothing from now on."""
    await control.keys.revoke(TeamId(teamID), KeyId(apiKeyID))
    return Response(status_code=204)


@router.put("/admin/teams/{teamID}/members/{userID}", status_code=204)
async def add_member(control: ControlOf, teamID: str, userID: str) -> Response:
    """Let a user act for a team."""
    await control.users.add_member(TeamId(teamID), UserId(userID))
    return Response(status_code=204)


@router.delete("/admin/teams/{teamID}/members/{userID}", status_code=204)
async def remove_member(control: ControlOf, teamID: str, userID: str) -> Response:
    """Let a user act for a team no longer."""
    await control.users.remove_member(TeamId(teamID), UserId(userID))
    return Response(status_code=204)


@router.get("/admin/users", response_model=list[schemas.AdminUser])
async def list_users(control: ControlOf) -> Response:
    """Every user."""
    return WireResponse(_USERS.dump_json([wire_user(user) for user in await control.users.list_all()]))


@router.post("/admin/users", status_code=201, response_model=schemas.AdminUser, responses={409: {}})
async def create_user(control: ControlOf, body: schemas.NewUser) -> Response:
    """A new user, member of the teams named; the first is its default."""
    teams = [TeamId(team_id) for team_id in body.teamIDs]
    return answer(wire_user(await control.users.create(body.email, team_ids=teams, subject=body.subject)), 201)


@router.delete("/admin/users/{userID}", status_code=204)
async def delete_user(control: ControlOf, userID: str) -> Response:
    """Remove a user; its tokens open nothing from now on."""
    await control.users.delete(UserId(userID))
    return Response(status_code=204)


@router.post("/admin/users/{userID}/jwts", status_code=201, response_model=schemas.CreatedJwt)
async def create_jwt(
    control: ControlOf, userID: str, body: Annotated[schemas.NewJwt | None, Body()] = None
) -> Response:
    """Issue a JWT for a user (a day by default)."""
    token, expires_at = await control.users.issue_jwt(UserId(userID), lifetime_s=(body or schemas.NewJwt()).lifetimeS)
    return answer(schemas.CreatedJwt(token=token, expiresAt=expires_at), 201)


@router.post("/admin/users/{userID}/access-tokens", status_code=201, response_model=schemas.CreatedAccessToken)
async def create_token_of_user(control: ControlOf, userID: str, body: schemas.NewKey) -> Response:
    """Make an access token of E2B's older kind for a user, shown once."""
    user = await control.users.fetch(UserId(userID))
    token, plain = await control.users.create_token(user.user_id, body.name)
    created = schemas.CreatedAccessToken(
        id=token.token_id, name=token.name, token=plain, mask=wire_mask(token.mask), createdAt=token.created_at
    )
    return answer(created, 201)


@router.get("/nodes", response_model=list[schemas.Node])
async def list_nodes(control: ControlOf) -> Response:
    """Every node with what is promised on it."""
    return WireResponse(_NODES.dump_json([wire_node(report) for report in await control.nodes.list_all()]))


@router.get("/nodes/{nodeID}", response_model=schemas.Node)
async def get_node(control: ControlOf, nodeID: str) -> Response:
    """One node."""
    return answer(wire_node(await control.nodes.fetch(NodeId(nodeID))))


@router.post("/nodes/{nodeID}", status_code=204)
async def set_node_status(control: ControlOf, nodeID: str, body: schemas.NodeStatusChange) -> Response:
    """`draining`: no new sandboxes go there, those that run go on; `ready`: as before."""
    await control.nodes.set_draining(NodeId(nodeID), is_draining=body.status == "draining")
    return Response(status_code=204)


@router.get("/admin/audit", response_model=list[schemas.AuditLine])
async def list_audit(
    control: ControlOf,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    teamID: str | None = None,
) -> Response:
    """Lines of the audit log after a sequence number, in order."""
    lines = await control.audit.list_lines(after=after, limit=limit, team_id=teamID)
    return WireResponse(_LINES.dump_json([wire_audit(line) for line in lines]))


@router.get("/admin/audit/verify", response_model=schemas.AuditReport)
async def verify_audit(control: ControlOf) -> Response:
    """Check the whole log; `problems` names every line that was changed, added or is missing."""
    report = await control.audit.verify()
    body = schemas.AuditReport(
        lineCount=report.line_count,
        firstSequence=report.first_sequence,
        lastSequence=report.last_sequence,
        lastMac=report.last_mac,
        problems=list(report.problems),
    )
    return answer(body)
