"""What the edge must know of a sandbox: where a running one answers, and that a paused one is there."""

from typing import Any

from firebrick.catalog.base import Route, RouteState
from firebrick.control.platform import Platform
from firebrick.model.ids import MachineId
from firebrick.model.sandbox import Sandbox

PAUSED = "paused"


def route_of(platform: Platform, sandbox: Sandbox) -> Route | None:
    """Where a running sandbox answers; None for one that has no address."""
    if sandbox.machine_id is None or sandbox.address is None:
        return None
    return Route(
        sandbox_id=sandbox.sandbox_id,
        machine_id=sandbox.machine_id,
        address=sandbox.address,
        **_checked_by_edge(platform, sandbox),
    )


def _checked_by_edge(platform: Platform, sandbox: Sandbox) -> dict[str, Any]:
    """What a request must bring, and what the owner's network options say of ports: the same paused and running."""
    options = sandbox.network or {}
    return {
        "access_token": platform.tokens.access_token(sandbox.sandbox_id) if sandbox.secure else "",
        "traffic_token": traffic_token(platform, sandbox) or "",
        "mask_host": options.get("maskRequestHost") or "",
        "https_ports": frozenset(options.get("httpsPorts") or ()),
    }


def traffic_token(platform: Platform, sandbox: Sandbox) -> str | None:
    """None for a sandbox whose ports are public."""
    if (sandbox.network or {}).get("allowPublicTraffic") is not False:
        return None
    return platform.tokens.traffic_token(sandbox.sandbox_id)


async def publish_running(platform: Platform, sandbox: Sandbox) -> None:
    route = route_of(platform, sandbox)
    if route is not None:
        await platform.catalog.publish(route)


def may_wake(sandbox: Sandbox) -> bool:
    """True if traffic may resume it once it is paused: its owner allows it, and its memory is kept as far as is known.
    Whatever listened on a port would be gone after a start from the disk alone."""
    return sandbox.auto_resume and sandbox.keeps_memory is not False


def paused_route(platform: Platform, sandbox: Sandbox) -> Route:
    """For one that may wake: the edge checks a request against it before it asks for the sandbox."""
    return Route(
        sandbox_id=sandbox.sandbox_id,
        machine_id=MachineId(""),
        address="",
        state=RouteState.PAUSED,
        **_checked_by_edge(platform, sandbox),
    )


async def publish_paused(platform: Platform, sandbox: Sandbox) -> None:
    """Cut its connections; keep a way to wake it if there is one. Idempotent."""
    if may_wake(sandbox):
        await platform.catalog.publish(paused_route(platform, sandbox))
    else:
        await platform.catalog.withdraw(sandbox.sandbox_id, PAUSED)
