"""End a sandbox, for whatever reason: kill, timeout, exit of the guest, failed create.

    begin:   + mark      row -> ending, with reason and time; from here the API says "not found"
             + withdraw  the edge drops its connections and answers with the reason
    finish:  + stop      the node ends it
             + release   row -> ended, reservation freed; of one that reached its timeout the disk is kept, and its
                         reservation with it, until the grace bin is emptied (`empty_grace_bin`)

It only goes forward: there is no way back from `ending`, and each step may be repeated. `begin` is what a caller
waits for; `finish` is done by the `finish_sandboxes` reconciler, at once on the happy day and after any restart.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from firebrick.control.actor import current_actor
from firebrick.control.platform import Platform
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.lifecycle.sandbox_machine import Rejected, SandboxEvent, next_state
from firebrick.model.errors import Conflict, NotFound, Unavailable
from firebrick.model.ids import MachineId, SandboxId
from firebrick.model.sandbox import EndReason, Sandbox, SandboxState
from firebrick.store.events import SandboxHappening, event_insert
from firebrick.store.reservations import reservation_delete, reservation_shrink
from firebrick.store.sandboxes import sandbox_fetch, sandbox_update_if

ATTEMPTS = 5
"""Tries against concurrent changes of the row. Each loser has a winner, and few can change one sandbox."""
STOP_TIMEOUT_S = 10.0


@dataclass(slots=True, kw_only=True)
class SandboxKill:
    """`machine_id` limits the end to that life; `generation` to the row as it was read. None: whatever it is."""

    platform: Platform
    sandbox_id: SandboxId
    reason: EndReason
    detail: str = ""
    machine_id: MachineId | None = None
    generation: int | None = None
    has_begun: bool = False


async def insist(change: Callable[[], Awaitable[bool]]) -> bool:
    """Read, decide and write again when somebody else changed the row between."""
    for _ in range(ATTEMPTS - 1):
        try:
            return await change()
        except Conflict:
            continue
    return await change()


async def _mark(kill: SandboxKill) -> None:
    kill.has_begun = await insist(lambda: _mark_once(kill)) or kill.has_begun


async def _mark_once(kill: SandboxKill) -> bool:
    platform = kill.platform
    async with platform.database.write() as tx:
        sandbox = await sandbox_fetch(tx, kill.sandbox_id)
        if sandbox is None or not _is_meant(kill, sandbox):
            return False
        following = next_state(sandbox.state, SandboxEvent.END)
        if isinstance(following, Rejected):
            return False
        now = platform.clock.now()
        detail = kill.detail or (f"by {current_actor()}" if kill.reason is EndReason.KILLED else "")
        marked = replace(sandbox, state=following, ended_at=now, end_reason=kill.reason, end_detail=detail)
        await sandbox_update_if(tx, marked)
        await event_insert(tx, replace(_happening(marked, kind="ending"), actor=current_actor()))
    return True


def _is_meant(kill: SandboxKill, sandbox: Sandbox) -> bool:
    # A machine that ends while its sandbox is paused takes the memory with it, never the disk: `sync_nodes` sees.
    is_paused = sandbox.state in (SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING)
    is_life = kill.machine_id is None or (sandbox.machine_id == kill.machine_id and not is_paused)
    return is_life and (kill.generation is None or sandbox.generation == kill.generation)


def _happening(sandbox: Sandbox, *, kind: str) -> SandboxHappening:
    assert sandbox.ended_at is not None
    assert sandbox.end_reason is not None
    return SandboxHappening(
        sandbox_id=sandbox.sandbox_id,
        team_id=sandbox.team_id,
        at=sandbox.ended_at,
        kind=kind,
        reason=sandbox.end_reason.value,
        detail=sandbox.end_detail,
    )


async def _withdraw(kill: SandboxKill) -> None:
    if kill.has_begun:
        await kill.platform.catalog.withdraw(kill.sandbox_id, kill.reason.value)


async def _stop(kill: SandboxKill) -> None:
    async with kill.platform.database.read() as tx:
        sandbox = await sandbox_fetch(tx, kill.sandbox_id)
    if sandbox is None or sandbox.state is not SandboxState.ENDING or sandbox.node_id is None:
        return
    try:
        async with asyncio.timeout(kill.platform.config.patient_s(STOP_TIMEOUT_S)):
            client = kill.platform.nodes.client(sandbox.node_id)
            await client.kill_sandbox(sandbox.sandbox_id, keep_disk=_is_binned(kill.platform, sandbox))
    except TimeoutError as exc:
        raise Unavailable("The sandbox's node did not answer in time.", detail=f"node {sandbox.node_id}") from exc
    except NotFound:
        # The node has forgotten it: that is what was wanted.
        return


async def _release(kill: SandboxKill) -> None:
    await insist(lambda: _release_once(kill))


async def _release_once(kill: SandboxKill) -> bool:
    async with kill.platform.database.write() as tx:
        sandbox = await sandbox_fetch(tx, kill.sandbox_id)
        if sandbox is None:
            return False
        following = next_state(sandbox.state, SandboxEvent.TORN_DOWN)
        if not isinstance(following, Rejected):
            until = _kept_until(kill.platform, sandbox)
            ended = await sandbox_update_if(tx, replace(sandbox, state=following, recoverable_until=until))
            happening = _happening(ended, kind="ended")
            await event_insert(tx, replace(happening, at=kill.platform.clock.now()))
            await (reservation_delete if until is None else reservation_shrink)(tx, kill.sandbox_id)
    return True


def _is_binned(platform: Platform, sandbox: Sandbox) -> bool:
    """A timeout is often not meant: the disk is kept a while. What never had a machine has none."""
    is_used = sandbox.machine_id is not None or sandbox.paused_at is not None
    return sandbox.end_reason is EndReason.TIMEOUT and platform.config.grace_bin_s > 0 and is_used


def _kept_until(platform: Platform, sandbox: Sandbox) -> datetime | None:
    if not _is_binned(platform, sandbox):
        return None
    return (sandbox.ended_at or platform.clock.now()) + timedelta(seconds=platform.config.grace_bin_s)


BEGIN: tuple[Step[SandboxKill], ...] = (Step(name="mark", act=_mark), Step(name="withdraw", act=_withdraw))
FINISH: tuple[Step[SandboxKill], ...] = (
    Step(name="withdraw", act=_withdraw),
    Step(name="stop", act=_stop),
    Step(name="release", act=_release),
)


async def begin_end(
    platform: Platform,
    sandbox_id: SandboxId,
    reason: EndReason,
    *,
    detail: str = "",
    machine_id: MachineId | None = None,
    generation: int | None = None,
) -> bool:
    """Decide the end and cut the sandbox off; the rest follows behind.

    Returns: False when there was nothing to end (gone, ending already, or another life than meant).
    Raises: Unavailable — the store does not answer; nothing was changed, or the reconciler goes on from the row.
    """
    kill = SandboxKill(
        platform=platform,
        sandbox_id=sandbox_id,
        reason=reason,
        detail=detail,
        machine_id=machine_id,
        generation=generation,
    )
    try:
        await run_workflow("sandbox_kill.begin", BEGIN, kill)
    finally:
        # Also when withdrawing failed or was cancelled: the row may say `ending` by now.
        platform.signals.endings.poke()
    return kill.has_begun


async def finish_end(platform: Platform, sandbox: Sandbox) -> None:
    """Bring a sandbox that is `ending` to its end. Raises Unavailable when its node does not answer; try again."""
    reason = sandbox.end_reason or EndReason.ERROR
    kill = SandboxKill(platform=platform, sandbox_id=sandbox.sandbox_id, reason=reason, has_begun=True)
    await run_workflow("sandbox_kill.finish", FINISH, kill)
