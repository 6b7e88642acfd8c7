"""The grace bin: disks of sandboxes that their timeout ended, kept a while.

    recover:  + take back   row ended -> paused (disk only), with the reservation that was held
    discard:  + close       nobody can recover it any more
              + discard     the node removes the disk
              + release     its reservation is freed

Each goes forward only, and `empty_grace_bin` repeats a discard that was cut off: an ended row that still holds a
reservation and cannot be recovered is one.
"""

import asyncio
from dataclasses import dataclass, replace

from firebrick.control.actor import current_actor
from firebrick.control.platform import Platform
from firebrick.control.routing import publish_paused
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.control.workflows.sandbox_kill import insist
from firebrick.lifecycle.sandbox_machine import Rejected, SandboxEvent, next_state
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError, NotFound, Unavailable, WrongState
from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.store.events import SandboxHappening, event_insert
from firebrick.store.reservations import reservation_delete
from firebrick.store.sandboxes import sandbox_fetch, sandbox_list_bin, sandbox_update_if

DISCARD_TIMEOUT_S = 20.0

log = get_log("control.grace_bin")


@dataclass(slots=True, kw_only=True)
class BinEntry:
    platform: Platform
    sandbox: Sandbox


async def recover_sandbox(platform: Platform, sandbox_id: SandboxId) -> Sandbox:
    """Bring a sandbox back from the bin: paused, with its disk and its configured timeout.

    Raises: WrongState — it has not ended, or it is not in the bin (any more). NotFound.
    """
    async with platform.database.write() as tx:
        row = await sandbox_fetch(tx, sandbox_id)
        if row is None:
            raise NotFound(f"Sandbox {sandbox_id} is gone.")
        following = next_state(row.state, SandboxEvent.RECOVER)
        if isinstance(following, Rejected):
            raise WrongState(f"Sandbox {sandbox_id} {following.reason}: there is nothing to recover.")
        now = platform.clock.now()
        if row.recoverable_until is None or row.recoverable_until <= now:
            raise WrongState(
                f"Sandbox {sandbox_id} has ended and its disk is not kept any more. Only sandboxes that reached their "
                f"timeout are kept, for {platform.config.grace_bin_s} seconds."
            )
        back = replace(
            row, state=following, keeps_memory=False, paused_at=now, expires_at=now, machine_id=None, address=None,
            ended_at=None, end_reason=None, end_detail="", recoverable_until=None,
        )  # fmt: skip
        recovered = await sandbox_update_if(tx, back)
        happening = SandboxHappening(
            sandbox_id=sandbox_id, team_id=row.team_id, at=now, kind="recovered", actor=current_actor()
        )
        await event_insert(tx, happening)
    await publish_paused(platform, recovered)
    return recovered


async def _close(entry: BinEntry) -> None:
    await insist(lambda: _close_once(entry))


async def _close_once(entry: BinEntry) -> bool:
    async with entry.platform.database.write() as tx:
        row = await sandbox_fetch(tx, entry.sandbox.sandbox_id)
        if row is None or row.state is not SandboxState.ENDED:
            raise WrongState(f"Sandbox {entry.sandbox.sandbox_id} was recovered meanwhile.")
        if row.recoverable_until is not None:
            entry.sandbox = await sandbox_update_if(tx, replace(row, recoverable_until=None))
    return True


async def _discard(entry: BinEntry) -> None:
    client = entry.platform.nodes.client(entry.sandbox.node_id)
    try:
        async with asyncio.timeout(entry.platform.config.patient_s(DISCARD_TIMEOUT_S)):
            await client.discard_sandbox(entry.sandbox.sandbox_id)
    except NotFound:
        return
    except TimeoutError as exc:
        raise Unavailable("The node did not discard a kept disk in time.") from exc


async def _release(entry: BinEntry) -> None:
    async with entry.platform.database.write() as tx:
        await reservation_delete(tx, entry.sandbox.sandbox_id)


DISCARD: tuple[Step[BinEntry], ...] = (
    Step(name="close", act=_close),
    Step(name="discard", act=_discard),
    Step(name="release", act=_release),
)


async def discard_kept(platform: Platform, sandbox: Sandbox) -> None:
    """Empty its place in the bin for good. Raises WrongState — recovered meanwhile; Unavailable — try again."""
    await run_workflow("grace_bin.discard", DISCARD, BinEntry(platform=platform, sandbox=sandbox))


async def discard_oldest(platform: Platform, team_id: TeamId | None = None) -> bool:
    """Make room by the entry (of that team) that has lain longest; False when there is none, or its node does not
    answer."""
    async with platform.database.read() as tx:
        entries = await sandbox_list_bin(tx)
    for sandbox in entries:
        if team_id not in (None, sandbox.team_id):
            continue
        try:
            await discard_kept(platform, sandbox)
        except WrongState:
            continue
        except FirebrickError:
            return False
        log.info("grace_bin.made_room", sandbox_id=sandbox.sandbox_id)
        return True
    return False
