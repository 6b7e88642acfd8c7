"""The catalog seam: which address serves a sandbox, right now.

The control plane publishes, the edge looks up. `publish` and `withdraw` return when every connected edge
has seen the change, or after ACK_TIMEOUT_S: so the first request after a create finds its route, and the
first after a kill finds none. A paused sandbox that may wake on traffic keeps a route, in state `paused`; one that
may not has a tombstone with reason `paused`. The catalog can always be rebuilt from the store; losing it loses nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from firebrick.model.errors import DeadlineExceeded, Unavailable
from firebrick.model.ids import MachineId, SandboxId

ACK_TIMEOUT_S = 0.25
WAKE_TIMEOUT_S = 60.0
"""How long a request may wait at the edge for its sandbox to come back."""

Waker = Callable[[SandboxId], Awaitable[None]]
"""The control plane's part of `wake`: resume the sandbox and publish its route, or raise why not. Called again while
it is under way, it must join that."""


class RouteState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a sandbox answers. `machine_id` keys connection pools: a recycled slot address belongs to another
    machine and must never get the old one's connections. `access_token` lets the edge match signed file URLs
    that name no sandbox; empty for one that is not secured. One in state `paused` has no machine and no address: a
    request that passes the checks of the edge wakes the sandbox.

    Attributes:
        traffic_token: what a request to a user port must bring; empty: its ports are public.
        mask_host: what user ports are told as Host, `${PORT}` filled in; empty: the client's own.
        https_ports: these speak TLS; their certificate is not verified.
    """

    sandbox_id: SandboxId
    machine_id: MachineId
    address: str
    access_token: str = field(default="", repr=False)
    state: RouteState = RouteState.RUNNING
    traffic_token: str = field(default="", repr=False)
    mask_host: str = ""
    https_ports: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """A sandbox that had a route: the edge answers with the reason instead of a bare 'not found'."""

    sandbox_id: SandboxId
    reason: str


class CatalogWriter(Protocol):
    """The control plane's side."""

    waker: Waker | None
    """Who answers `wake`; None: nothing can be woken."""

    async def publish(self, route: Route) -> None: ...

    async def withdraw(self, sandbox_id: SandboxId, reason: str) -> None:
        """Idempotent. `reason` is an EndReason or `paused`."""
        ...

    async def replace_all(self, routes: Sequence[Route], tombstones: Sequence[Tombstone]) -> None:
        """Make these all there is. Called once, when the control plane starts; until then readers are told
        nothing, so that a restart never looks like the end of every sandbox. Tombstones oldest first."""
        ...


class CatalogReader(Protocol):
    """The edge's side: a table in memory that follows the writer; it outlives the writer's absence."""

    @property
    def is_ready(self) -> bool:
        """False until the first table has arrived: till then a missing route means nothing."""
        ...

    def route(self, sandbox_id: SandboxId) -> Route | None: ...

    def tombstone(self, sandbox_id: SandboxId) -> Tombstone | None: ...

    def routes(self) -> tuple[Route, ...]: ...

    async def wake(self, sandbox_id: SandboxId) -> None:
        """Have a paused sandbox resumed; its running route is in the table when this returns.

        Raises: NotFound — it is gone; Forbidden, LimitExceeded, NoCapacity; WrongState, Conflict — another change of
            its state is under way; Unavailable — the control plane is away; DeadlineExceeded — WAKE_TIMEOUT_S.
        """
        ...

    def changes(self) -> AsyncIterator[Route | Tombstone]:
        """Every change from now on; the consumer closes connections of withdrawn routes. The writer's
        acknowledgement waits until the consumer asks for the next one."""
        ...


async def run_waker(waker: Waker | None, sandbox_id: SandboxId, *, patience: float = 1.0) -> None:
    """Call it, bounded by WAKE_TIMEOUT_S times `patience`. Raises: as `CatalogReader.wake`."""
    if waker is None:
        raise Unavailable("This instance cannot resume sandboxes on traffic; connect to the sandbox through the API.")
    timeout_s = WAKE_TIMEOUT_S * patience
    try:
        async with asyncio.timeout(timeout_s):
            await waker(sandbox_id)
    except TimeoutError as exc:
        raise DeadlineExceeded(f"The sandbox did not resume within {timeout_s:.0f} s. Try again.") from exc
