"""The catalog seam: which address serves a sandbox, right now.

The control plane publishes, the edge looks up. `publish` and `withdraw` return when every connected edge
has seen the change, or after ACK_TIMEOUT_S: so the first request after a create finds its route, and the
first after a kill finds none. The catalog can always be rebuilt from the store; losing it loses nothing.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from firebrick.model.ids import MachineId, SandboxId

ACK_TIMEOUT_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a sandbox answers. `machine_id` keys connection pools: a recycled slot address belongs to another
    machine and must never get the old one's connections. `access_token` lets the edge match signed file URLs
    that name no sandbox; empty for one that is not secured."""

    sandbox_id: SandboxId
    machine_id: MachineId
    address: str
    access_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """A sandbox that had a route: the edge answers with the reason instead of a bare 'not found'."""

    sandbox_id: SandboxId
    reason: str


class CatalogWriter(Protocol):
    """The control plane's side."""

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

    def changes(self) -> AsyncIterator[Route | Tombstone]:
        """Every change from now on; the consumer closes connections of withdrawn routes. The writer's
        acknowledgement waits until the consumer asks for the next one."""
        ...
