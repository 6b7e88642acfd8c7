"""The application: routes, error handlers and the layers around them."""

from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from firebrick import __version__
from firebrick.api import (
    admin,
    autopsies,
    health,
    not_available,
    owners,
    sandbox_lists,
    sandbox_network,
    sandbox_observations,
    sandbox_pauses,
    sandboxes,
    snapshot_archives,
    snapshots,
    team_metrics,
    templates,
)
from firebrick.api.errors import install_error_handlers
from firebrick.api.request_context import RequestContext
from firebrick.api.telemetry import Telemetry
from firebrick.api.wire import ListedBytes
from firebrick.control.plane import ControlPlane

EXPOSED_HEADERS = ("X-Next-Token", "X-Total-Running", "X-Request-Id", "Should-Retry", "Retry-After")


class Application(FastAPI):
    """Its description leaves out what FastAPI only assumes: failed validation is 400 here, in our shape."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                responses = operation.get("responses", {})
                if "HTTPValidationError" in str(responses.get("422", "")):
                    del responses["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document


def create_app(control: ControlPlane) -> FastAPI:
    """The API of one control plane, ready for an ASGI server."""
    app = _build()
    app.state.control = control
    app.state.telemetry.watch(control)
    return app


def create_app_for_openapi() -> FastAPI:
    """The same routes without a control plane behind them: only for `app.openapi()`."""
    return _build()


def _build() -> FastAPI:
    # Neither docs pages nor the description are served: a stranger learns nothing of the API from a server.
    app = Application(
        title="Firebrick control plane",
        version=__version__,
        description="Sandboxes for AI agents; compatible with E2B's clients.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.telemetry = Telemetry()
    app.state.listed = ListedBytes()
    # NOTE: fixed paths such as /sandboxes/metrics come before /sandboxes/{sandboxID}: the first match wins.
    # `snapshots` is last: a snapshot's id has a slash, so its path takes what nothing else took.
    for router in (
        health.router, autopsies.router, sandbox_lists.router, sandbox_observations.router, team_metrics.router,
        sandboxes.router, sandbox_network.router, sandbox_pauses.router, templates.router,
        owners.user_router, owners.key_router, admin.router,
        not_available.router, snapshot_archives.router, snapshots.router,
    ):  # fmt: skip
        app.include_router(router)
    install_error_handlers(app)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=list(EXPOSED_HEADERS),
    )
    # NOTE: added last, so it is outermost: preflights and crashes get an id, too.
    app.add_middleware(RequestContext, telemetry=app.state.telemetry)
    return app
