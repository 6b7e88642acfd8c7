"""Endpoints of users: their teams, a team's API keys, access tokens of E2B's older kind."""

from fastapi.responses import Response
from pydantic import TypeAdapter

from firebrick.api import owner_schemas as schemas
from firebrick.api.owner_wire import key_fields, wire_mask
from firebrick.api.route import CallerOf, ControlOf, ManagedRoute, TeamOf, UserOf, UserRoute, guarded_router
from firebrick.api.wire import WireResponse, answer
from firebrick.control.plane import ControlPlane
from firebrick.model.ids import KeyId, TokenId, UserId

user_router = guarded_router("auth", UserRoute)
key_router = guarded_router("api-keys", ManagedRoute)

_TEAMS = TypeAdapter(list[schemas.Team])
_KEYS = TypeAdapter(list[schemas.TeamApiKey])


@user_router.get("/teams", response_model=list[schemas.Team])
async def list_teams(control: ControlOf, user: UserOf) -> Response:
    """The user's teams, the default first. No key is shown: they are stored hashed."""
    teams = [
        schemas.Team(teamID=item.team.team_id, name=item.team.name, apiKey="", isDefault=item.is_default)
        for item in await control.users.teams_of(user.user_id)
    ]
    return WireResponse(_TEAMS.dump_json(teams))


@user_router.post("/access-tokens", status_code=201, response_model=schemas.CreatedAccessToken)
async def create_access_token(control: ControlOf, user: UserOf, body: schemas.NewKey) -> Response:
    """A long-lived token of the user, shown once. E2B calls it deprecated; use an API key where you can."""
    token, plain = await control.users.create_token(user.user_id, body.name)
    created = schemas.CreatedAccessToken(
        id=token.token_id, name=token.name, token=plain, mask=wire_mask(token.mask), createdAt=token.created_at
    )
    return answer(created, 201)


@user_router.delete("/access-tokens/{accessTokenID}", status_code=204)
async def delete_access_token(control: ControlOf, user: UserOf, accessTokenID: str) -> Response:
    """Take a token back; it opens nothing from now on."""
    await control.users.delete_token(user.user_id, TokenId(accessTokenID))
    return Response(status_code=204)


@key_router.get("/api-keys", response_model=list[schemas.TeamApiKey])
async def list_keys(control: ControlOf, team: TeamOf) -> Response:
    """The team's API keys, without the keys themselves."""
    emails = await _emails(control)
    keys = [schemas.TeamApiKey(**key_fields(key, emails)) for key in await control.keys.list_of(team.team_id)]  # type: ignore[arg-type]
    return WireResponse(_KEYS.dump_json(keys))


@key_router.post("/api-keys", status_code=201, response_model=schemas.CreatedTeamApiKey)
async def create_key(control: ControlOf, team: TeamOf, caller: CallerOf, body: schemas.NewKey) -> Response:
    """A new API key of the team, shown once."""
    made_by = caller.user.user_id if caller.user is not None else None
    key, plain = await control.keys.create(team.team_id, body.name, created_by=made_by)
    fields = key_fields(key, await _emails(control))
    return answer(schemas.CreatedTeamApiKey(key=plain, **fields), 201)  # type: ignore[arg-type]


@key_router.patch("/api-keys/{apiKeyID}", status_code=200)
async def rename_key(control: ControlOf, team: TeamOf, apiKeyID: str, body: schemas.NewKey) -> Response:
    """Give a key another name."""
    await control.keys.rename(team.team_id, KeyId(apiKeyID), body.name)
    return Response(status_code=200)


@key_router.delete("/api-keys/{apiKeyID}", status_code=204)
async def delete_key(control: ControlOf, team: TeamOf, apiKeyID: str) -> Response:
    """Revoke a key; it opens nothing from now on."""
    await control.keys.revoke(team.team_id, KeyId(apiKeyID))
    return Response(status_code=204)


async def _emails(control: ControlPlane) -> dict[UserId, str]:
    return {user.user_id: user.email for user in await control.users.list_all()}
