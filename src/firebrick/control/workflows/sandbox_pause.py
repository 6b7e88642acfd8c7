"""Pause a sandbox.

    begin:   + mark      row -> pausing                                             - row -> running
             + withdraw  the edge drops its connections                             - published again
             + freeze    the node freezes it, or ends it and keeps its disk
    settle:  + settle    row -> paused, with what was kept; CPU and memory are given back
             + announce  one whose memory could not be kept is no longer woken by traffic

A node that refuses (it still runs there) is undone: the sandbox runs on. A node whose answer is lost may have paused
it, so nothing is undone then: the row stays `pausing`, and `finish_sandboxes` goes on from there, as after a crash.
"""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime

from firebrick.control.actor import current_actor
from firebrick.control.platform import Platform
from firebrick.control.routing import may_wake, publish_paused, publish_running
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.control.workflows.sandbox_kill import begin_end, insist
from firebrick.lifecycle.sandbox_machine import Rejected, SandboxEvent, next_state
from firebrick.model.errors import DeadlineExceeded, FirebrickError, NotFound, Unavailable, WrongState
from firebrick.model.ids import SandboxId
from firebrick.model.sandbox import EndReason, Sandbox, SandboxState
from firebrick.rpc.node_api import PausedSandbox, PauseSandbox
from firebrick.store.events import SandboxHappening, event_insert
from firebrick.store.reservations import reservation_shrink
from firebrick.store.sandboxes import sandbox_fetch, sandbox_update_if

FREEZE_TIMEOUT_S = 60.0
"""A full sync of a busy disk takes seconds; beyond this the answer counts as lost."""
LOST_DETAIL = "Its node no longer has it."


class GuestUnresponsive(Unavailable):
    """The pause was to be refused if the guest agent does not answer, and it does not. The sandbox runs on."""

    code = "guest_unresponsive"


@dataclass(slots=True, kw_only=True)
class SandboxPause:
    """`generation` limits the pause to the row as it was read; None: whatever it is. `is_refused`: the node said that
    the sandbox still runs."""

    platform: Platform
    sandbox_id: SandboxId
    keep_memory: bool = True
    require_healthy: bool = False
    generation: int | None = None
    sandbox: Sandbox | None = None
    frozen: PausedSandbox | None = None
    is_refused: bool = True


async def _mark(pause: SandboxPause) -> None:
    async with pause.platform.database.write() as tx:
        row = await sandbox_fetch(tx, pause.sandbox_id)
        if row is None:
            raise NotFound(f"Sandbox {pause.sandbox_id} is gone.")
        if row.state is SandboxState.PAUSING and pause.sandbox is not None:
            return
        following = next_state(row.state, SandboxEvent.PAUSE)
        if isinstance(following, Rejected):
            raise WrongState(f"Error pausing sandbox - sandbox '{row.sandbox_id}' {following.reason}")
        if pause.generation is not None and row.generation != pause.generation:
            raise WrongState(f"Sandbox {row.sandbox_id} changed meanwhile.")
        pause.sandbox = await sandbox_update_if(tx, replace(row, state=following))


async def _undo_mark(pause: SandboxPause) -> None:
    await insist(lambda: _stay_once(pause))
    pause.platform.signals.expiry.poke()


async def _stay_once(pause: SandboxPause) -> bool:
    async with pause.platform.database.write() as tx:
        row = await sandbox_fetch(tx, pause.sandbox_id)
        if row is None or pause.sandbox is None:
            return False
        following = next_state(row.state, SandboxEvent.STAYED)
        if isinstance(following, Rejected):
            return False
        await sandbox_update_if(tx, replace(row, state=following))
        return True


async def _withdraw(pause: SandboxPause) -> None:
    assert pause.sandbox is not None
    await publish_paused(pause.platform, pause.sandbox)


async def _undo_withdraw(pause: SandboxPause) -> None:
    async with pause.platform.database.read() as tx:
        row = await sandbox_fetch(tx, pause.sandbox_id)
    if row is not None and row.state in (SandboxState.PAUSING, SandboxState.RUNNING):
        await publish_running(pause.platform, row)


async def _freeze(pause: SandboxPause) -> None:
    assert pause.sandbox is not None
    pause.is_refused = False
    client = pause.platform.nodes.client(pause.sandbox.node_id)
    request = PauseSandbox(
        sandbox_id=pause.sandbox_id, keep_memory=pause.keep_memory, require_healthy=pause.require_healthy
    )
    deadline_s = pause.platform.config.patient_s(FREEZE_TIMEOUT_S)
    try:
        async with asyncio.timeout(deadline_s):
            pause.frozen = await client.pause_sandbox(request)
    except TimeoutError as exc:
        raise DeadlineExceeded(f"The sandbox was not paused within {deadline_s:.0f} seconds.") from exc
    except (Unavailable, DeadlineExceeded):
        raise
    except WrongState as exc:
        pause.is_refused = True
        raise GuestUnresponsive(
            f"Sandbox {pause.sandbox_id} was not paused and runs on: its guest agent does not answer. "
            "Pause it without requireHealthyGuest, or kill it.",
            detail=exc.message,
        ) from exc
    except FirebrickError:
        pause.is_refused = True
        raise


async def _undo_freeze(pause: SandboxPause) -> None:
    """Nothing to undo after a refusal. Otherwise the pause may have happened: it must not be undone, but finished."""
    if not pause.is_refused:
        raise Unavailable("It is not known whether the node has paused the sandbox.")


async def _settle(pause: SandboxPause) -> None:
    await insist(lambda: _settle_once(pause))


async def _settle_once(pause: SandboxPause) -> bool:
    frozen = pause.frozen
    assert frozen is not None
    now = pause.platform.clock.now()
    async with pause.platform.database.write() as tx:
        row = await sandbox_fetch(tx, pause.sandbox_id)
        if row is None:
            return False
        if row.state is SandboxState.PAUSED:
            pause.sandbox = row
            return False
        following = next_state(row.state, SandboxEvent.PAUSED)
        if isinstance(following, Rejected):
            raise WrongState(f"Sandbox {row.sandbox_id} {following.reason}")
        row = replace(row, state=following, silent_at_pause=frozen.is_silent)
        pause.sandbox = await sandbox_update_if(tx, paused_row(row, keeps_memory=frozen.keeps_memory, now=now))
        await reservation_shrink(tx, row.sandbox_id)
        await event_insert(tx, paused_event(pause.sandbox, at=now))
    return True


async def _announce(pause: SandboxPause) -> None:
    sandbox = pause.sandbox
    if sandbox is not None and sandbox.auto_resume and not may_wake(sandbox):
        await publish_paused(pause.platform, sandbox)


def paused_row(row: Sandbox, *, keeps_memory: bool, now: datetime) -> Sandbox:
    """The row of a sandbox that its node holds paused from now on, or still does."""
    return replace(
        row,
        state=SandboxState.PAUSED,
        keeps_memory=keeps_memory,
        paused_at=row.paused_at or now,
        expires_at=row.paused_at or now,
        machine_id=row.machine_id if keeps_memory else None,
        address=None,
    )


def paused_event(sandbox: Sandbox, *, at: datetime) -> SandboxHappening:
    kept = "Its memory is kept." if sandbox.keeps_memory else "Its disk is kept; its processes are gone."
    if sandbox.silent_at_pause:
        kept += " Its guest agent did not answer."
    return SandboxHappening(
        actor=current_actor(),
        sandbox_id=sandbox.sandbox_id, team_id=sandbox.team_id, at=at, kind="paused", detail=kept
    )  # fmt: skip


BEGIN: tuple[Step[SandboxPause], ...] = (
    Step(name="mark", act=_mark, undo=_undo_mark),
    Step(name="withdraw", act=_withdraw, undo=_undo_withdraw),
    Step(name="freeze", act=_freeze, undo=_undo_freeze),
)
SETTLE: tuple[Step[SandboxPause], ...] = (
    Step(name="settle", act=_settle),
    Step(name="announce", act=_announce),
)


async def pause_sandbox(pause: SandboxPause) -> Sandbox:
    """Pause a running sandbox; its node holds it, and it costs no CPU, when this returns.

    Raises:
        WrongState: it is not running (any more). Unavailable, DeadlineExceeded: the pause goes on behind.
        Internal: its node could not pause it; it runs on.
    """
    with pause.platform.working(pause.sandbox_id):
        try:
            await run_workflow("sandbox_pause.begin", BEGIN, pause)
            await run_workflow("sandbox_pause.settle", SETTLE, pause)
        except NotFound:
            # The node has nothing of it: it ended while it was being paused.
            await begin_end(pause.platform, pause.sandbox_id, EndReason.NODE_LOST, detail=LOST_DETAIL)
            raise
        finally:
            pause.platform.signals.endings.poke()
    assert pause.sandbox is not None
    return pause.sandbox


async def finish_pause(platform: Platform, sandbox: Sandbox) -> None:
    """Bring a sandbox that is `pausing` to its pause, or to running when its node refuses.

    Raises Unavailable, DeadlineExceeded when its node does not answer; try again.
    """
    pause = SandboxPause(platform=platform, sandbox_id=sandbox.sandbox_id, sandbox=sandbox)
    try:
        await run_workflow("sandbox_pause.finish", (*BEGIN, *SETTLE), pause)
    except NotFound:
        await begin_end(platform, sandbox.sandbox_id, EndReason.NODE_LOST, detail=LOST_DETAIL)
