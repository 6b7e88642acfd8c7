"""The table both sides of a catalog keep: routes, and the newest tombstones. Pure; no I/O, no clock."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from firebrick.catalog.base import Route, Tombstone
from firebrick.model.ids import SandboxId

TOMBSTONE_LIMIT = 10_000
"""About 1 MB; an older sandbox is answered with a bare 'not found'."""


@dataclass(slots=True, kw_only=True)
class RouteTable:
    """A sandbox has a route, a tombstone, or neither; never both."""

    routes: dict[SandboxId, Route] = field(default_factory=dict)
    tombstones: dict[SandboxId, Tombstone] = field(default_factory=dict)

    def apply(self, change: Route | Tombstone) -> None:
        match change:
            case Route():
                self.tombstones.pop(change.sandbox_id, None)
                self.routes[change.sandbox_id] = change
            case Tombstone():
                self.routes.pop(change.sandbox_id, None)
                # Taken out first: a dict keeps its order of insertion, and the newest must stand last.
                self.tombstones.pop(change.sandbox_id, None)
                self.tombstones[change.sandbox_id] = change
                if len(self.tombstones) > TOMBSTONE_LIMIT:
                    del self.tombstones[next(iter(self.tombstones))]

    def replace(self, routes: Iterable[Route], tombstones: Iterable[Tombstone]) -> tuple[Route | Tombstone, ...]:
        """Make these all there is; tombstones oldest first.

        Returns:
            What a consumer of the old table must be told: withdrawals first, so that an address that went from
            one sandbox to another is closed before it is opened. A route that is simply gone is withdrawn
            with an empty reason, which is not kept.
        """
        new_routes = {route.sandbox_id: route for route in routes}
        kept = {stone.sandbox_id: stone for stone in tombstones if stone.sandbox_id not in new_routes}
        new_tombstones = dict(list(kept.items())[-TOMBSTONE_LIMIT:])
        gone = [
            new_tombstones.get(sandbox_id) or Tombstone(sandbox_id=sandbox_id, reason="")
            for sandbox_id in self.routes
            if sandbox_id not in new_routes
        ]
        fresh = [route for sandbox_id, route in new_routes.items() if self.routes.get(sandbox_id) != route]
        self.routes = new_routes
        self.tombstones = new_tombstones
        return (*gone, *fresh)
