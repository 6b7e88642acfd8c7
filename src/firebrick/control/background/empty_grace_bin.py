"""Empty the grace bin: disks whose time there is over, and discards that were cut off."""

from firebrick.control.platform import Platform
from firebrick.control.workflows.grace_bin import discard_kept
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError, WrongState
from firebrick.store.sandboxes import sandbox_list_bin

ROUND_S = 10.0

log = get_log("control.grace_bin")


class EmptyGraceBin:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def round(self) -> float:
        async with self._platform.database.read() as tx:
            entries = await sandbox_list_bin(tx)
        now = self._platform.clock.now()
        for sandbox in entries:
            if sandbox.recoverable_until is not None and sandbox.recoverable_until > now:
                continue
            try:
                await discard_kept(self._platform, sandbox)
            except WrongState:
                continue
            except FirebrickError as exc:
                log.warning("grace_bin.discard_waits", sandbox_id=sandbox.sandbox_id, error=exc.message)
        return ROUND_S
