"""Where a running sandbox may connect to, changed while it runs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from firebrick.control.platform import Platform
from firebrick.control.sandboxes import ATTEMPTS, SandboxService
from firebrick.model.egress import egress_of
from firebrick.model.errors import Conflict, WrongState
from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.sandbox import SandboxState
from firebrick.store.sandboxes import sandbox_update_if

KEPT = ("allowPublicTraffic", "maskRequestHost", "httpsPorts")
"""Options of the ports, which an update leaves as they are."""


class NetworkingService:
    def __init__(self, platform: Platform, sandboxes: SandboxService) -> None:
        self._platform = platform
        self._sandboxes = sandboxes

    async def update(
        self, team_id: TeamId, sandbox_id: SandboxId, *, allow_internet_access: bool | None, options: Mapping[str, Any]
    ) -> None:
        """Replace every egress rule by these checked ones; they hold when this returns, also for open connections.

        The node first, the row last: should we end between them, the caller was told nothing, and a repetition mends
        it. Of two at once, the one whose row was refused goes to the node once more, so that both agree in the end.

        Raises: NotFound; WrongState — it does not run; Unavailable; Conflict.
        """
        for _ in range(ATTEMPTS):
            sandbox = await self._sandboxes.fetch(team_id, sandbox_id)
            if sandbox.state is not SandboxState.RUNNING:
                raise WrongState(f"Sandbox {sandbox_id} is paused; resume it before you change its network.")
            kept = {name: value for name, value in (sandbox.network or {}).items() if name in KEPT}
            wanted = replace(
                sandbox, allow_internet_access=allow_internet_access, network=kept | dict(options) or None
            )  # fmt: skip
            node = self._platform.nodes.client(sandbox.node_id)
            await node.update_network(sandbox_id, egress_of(allow_internet_access, options))
            try:
                async with self._platform.database.write() as tx:
                    await sandbox_update_if(tx, wanted)
            except Conflict:
                continue
            return
        raise Conflict(f"Sandbox {sandbox_id} is being changed by many requests at once. Try again.")
