"""Endpoints that look templates up. Nothing is built through this version's API."""

from fastapi.responses import Response
from pydantic import TypeAdapter

from firebrick.api import schemas
from firebrick.api.route import ControlOf, TeamOf, authenticated_router
from firebrick.api.wire import WireResponse, answer, wire_template

router = authenticated_router("templates")

_TEMPLATES = TypeAdapter(list[schemas.Template])


@router.get("/templates", response_model=list[schemas.Template])
async def list_templates(control: ControlOf, team: TeamOf) -> Response:
    """Every template the team can create sandboxes from."""
    items = [wire_template(item) for item in await control.templates.list_all(team.team_id)]
    return WireResponse(_TEMPLATES.dump_json([item for item in items if item is not None]))


@router.get("/templates/aliases/{alias}", response_model=schemas.TemplateAlias)
async def get_alias(control: ControlOf, team: TeamOf, alias: str) -> Response:
    """Which template a name means."""
    template = (await control.templates.resolve(team, alias)).template
    return answer(schemas.TemplateAlias(templateID=template.template_id, public=template.team_id is None))
