"""Endpoints for operators. Public: they tell nothing of any team."""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from firebrick.api.route import ControlOf, PublicRoute
from firebrick.api.telemetry import Telemetry

router = APIRouter(route_class=PublicRoute, tags=["operation"])


@router.get("/health", response_class=PlainTextResponse)
async def get_health() -> Response:
    """200 while this process answers."""
    return PlainTextResponse("Health check successful")


@router.get("/metrics", response_class=PlainTextResponse)
async def get_prometheus_metrics(request: Request, control: ControlOf) -> Response:
    """Figures for Prometheus."""
    telemetry: Telemetry = request.app.state.telemetry
    return Response(telemetry.render(await control.count_sandboxes()), media_type=CONTENT_TYPE_LATEST)
