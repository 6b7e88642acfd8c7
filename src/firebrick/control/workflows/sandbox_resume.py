"""Resume a paused sandbox.

    + reserve   one transaction: quota, CPU and memory beside the disk that is held, row `resuming`   - row `paused`
    + start     the node thaws it, or starts a machine on its disk                                    - paused again
    + confirm   row -> running; its time begins
    + publish   the edge learns where it is                                                           - withdrawn

A crash between the steps leaves the row in `resuming`: `finish_sandboxes` then pauses it again, because nobody was told
that it runs, and one that runs unknown to its owner might reach its timeout.
"""

import asyncio
from dataclasses import dataclass, replace

from firebrick.control.actor import current_actor
from firebrick.control.platform import Platform
from firebrick.control.routing import publish_paused, publish_running
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.control.workflows.sandbox_create import START_DEADLINE_S, running_row, start_request
from firebrick.control.workflows.sandbox_kill import begin_end, insist
from firebrick.control.workflows.sandbox_pause import LOST_DETAIL, paused_row
from firebrick.lifecycle.sandbox_machine import Rejected, SandboxEvent, next_state
from firebrick.model.errors import Conflict, DeadlineExceeded, NotFound, Unavailable, WrongState
from firebrick.model.node import NodeState
from firebrick.model.sandbox import EndReason, Sandbox, SandboxState
from firebrick.rpc.node_api import NodeSandbox, PauseSandbox
from firebrick.store.events import SandboxHappening, event_insert
from firebrick.store.quotas import quota_check
from firebrick.store.reservations import reservation_grow, reservation_shrink
from firebrick.store.sandboxes import sandbox_fetch, sandbox_update_if

PAUSE_AGAIN_TIMEOUT_S = 30.0


class GuestStillUnresponsive(WrongState):
    """Its guest agent did not answer when it was paused with its memory, nor does it now."""

    code = "guest_unresponsive"


@dataclass(slots=True, kw_only=True)
class SandboxResume:
    """`sandbox` is the row as it stands after each step, its `on_timeout` the wish; `keep_memory` False starts it anew
    on its disk. `is_marked`: this workflow made it `resuming`."""

    platform: Platform
    sandbox: Sandbox
    timeout_s: int
    keep_memory: bool = True
    started: NodeSandbox | None = None
    keeps_memory: bool | None = None
    is_marked: bool = False


async def _reserve(resume: SandboxResume) -> None:
    async with resume.platform.database.write() as tx:
        row = await sandbox_fetch(tx, resume.sandbox.sandbox_id)
        if row is None:
            raise NotFound(f"Sandbox {resume.sandbox.sandbox_id} is gone.")
        if row.state is SandboxState.RESUMING and resume.is_marked:
            return
        following = next_state(row.state, SandboxEvent.RESUME)
        if isinstance(following, Rejected):
            raise WrongState(f"Sandbox {row.sandbox_id} {following.reason}")
        if row.node_id is None:
            raise Conflict(f"Sandbox {row.sandbox_id} has no node. Try again.")
        # NOTE: its disk is reserved all the time; only CPU and memory come on top.
        wanted = replace(row.limits, disk_mib=0)
        await quota_check(tx, row.team_id, wanted, now=resume.platform.clock.now(), is_create=False)
        await reservation_grow(tx, sandbox_id=row.sandbox_id, node_id=row.node_id, limits=row.limits)
        resume.sandbox = await sandbox_update_if(
            tx, replace(row, state=following, on_timeout=resume.sandbox.on_timeout)
        )
    resume.is_marked = True


async def _undo_reserve(resume: SandboxResume) -> None:
    # What this workflow never marked is another's, whatever its state.
    if resume.is_marked:
        await insist(lambda: _settle_back_once(resume))


async def _settle_back_once(resume: SandboxResume) -> bool:
    now = resume.platform.clock.now()
    async with resume.platform.database.write() as tx:
        row = await sandbox_fetch(tx, resume.sandbox.sandbox_id)
        if row is None:
            return False
        following = next_state(row.state, SandboxEvent.PAUSED)
        if isinstance(following, Rejected):
            return False
        keeps_memory = bool(row.keeps_memory) if resume.keeps_memory is None else resume.keeps_memory
        resume.sandbox = await sandbox_update_if(tx, paused_row(row, keeps_memory=keeps_memory, now=now))
        await reservation_shrink(tx, row.sandbox_id)
        return True


async def _start(resume: SandboxResume) -> None:
    platform, sandbox = resume.platform, resume.sandbox
    request = replace(start_request(platform, sandbox), keep_memory=resume.keep_memory)
    deadline_s = platform.config.patient_s(START_DEADLINE_S)
    try:
        async with asyncio.timeout(deadline_s):
            resume.started = await platform.nodes.client(sandbox.node_id).resume_sandbox(request)
    except TimeoutError as exc:
        raise DeadlineExceeded(f"The sandbox did not resume within {deadline_s:.0f} seconds. Try again.") from exc
    except NotFound as exc:
        await begin_end(platform, sandbox.sandbox_id, EndReason.NODE_LOST, detail=LOST_DETAIL)
        raise NotFound(f"Sandbox {sandbox.sandbox_id} cannot be resumed: its node no longer has its disk.") from exc


async def _undo_start(resume: SandboxResume) -> None:
    client = resume.platform.nodes.client(resume.sandbox.node_id)
    try:
        async with asyncio.timeout(resume.platform.config.patient_s(PAUSE_AGAIN_TIMEOUT_S)):
            paused = await client.pause_sandbox(PauseSandbox(sandbox_id=resume.sandbox.sandbox_id, keep_memory=True))
    except TimeoutError as exc:
        raise DeadlineExceeded("The sandbox was not paused again in time.") from exc
    except NotFound:
        # It was ended above, or is by `sync_nodes`.
        return
    resume.keeps_memory = paused.keeps_memory


async def _confirm(resume: SandboxResume) -> None:
    platform, started = resume.platform, resume.started
    assert started is not None
    async with platform.database.write() as tx:
        row = await sandbox_fetch(tx, resume.sandbox.sandbox_id)
        if row is None:
            raise NotFound(f"Sandbox {resume.sandbox.sandbox_id} is gone.")
        if row.state is SandboxState.RUNNING and row.machine_id == started.machine_id:
            resume.sandbox = row
            return
        now = platform.clock.now()
        running = running_row(row, started, timeout_s=resume.timeout_s, now=now)
        if isinstance(running, Rejected):
            raise WrongState(f"Sandbox {row.sandbox_id} {running.reason}")
        resume.sandbox = await sandbox_update_if(tx, running)
        kept = "With its memory." if started.kept_memory else "From its disk: it was started anew."
        await event_insert(
            tx,
            SandboxHappening(
                sandbox_id=row.sandbox_id,
                team_id=row.team_id,
                at=now,
                kind="resumed",
                detail=kept,
                actor=current_actor(),
            ),
        )
    platform.signals.expires(resume.sandbox.expires_at)


async def _publish(resume: SandboxResume) -> None:
    await publish_running(resume.platform, resume.sandbox)


async def _undo_publish(resume: SandboxResume) -> None:
    await publish_paused(resume.platform, resume.sandbox)


STEPS: tuple[Step[SandboxResume], ...] = (
    Step(name="reserve", act=_reserve, undo=_undo_reserve),
    Step(name="start", act=_start, undo=_undo_start),
    Step(name="confirm", act=_confirm),
    Step(name="publish", act=_publish, undo=_undo_publish),
)


async def resume_sandbox(resume: SandboxResume) -> Sandbox:
    """Run the workflow; the sandbox is running and reachable when this returns, for `timeout_s` from now.

    Raises:
        WrongState: it is not paused (any more). LimitExceeded: the team's quota. NoCapacity: its node is full.
        NotFound: its node no longer has its disk. Unavailable, DeadlineExceeded: its node does not answer.
        GuestStillUnresponsive: it is paused again.
    """
    with resume.platform.working(resume.sandbox.sandbox_id):
        try:
            await run_workflow("sandbox_resume", STEPS, resume)
        except Unavailable as exc:
            node_id, statuses = resume.sandbox.node_id, resume.platform.nodes.statuses
            node = None if node_id is None else statuses.get(node_id)
            if resume.sandbox.silent_at_pause and node is not None and node.state is NodeState.READY:
                raise GuestStillUnresponsive(
                    f"Sandbox {resume.sandbox.sandbox_id} was paused when its guest agent did not answer, and it still "
                    "does not; it is paused again. Start it anew from its disk with `memory: false`.",
                    detail=exc.message,
                ) from exc
            raise
        finally:
            resume.platform.signals.endings.poke()
    return resume.sandbox


async def abandon_resume(platform: Platform, sandbox: Sandbox) -> None:
    """Pause a sandbox again whose resume lost its process. Raises Unavailable when its node does not answer."""
    resume = SandboxResume(platform=platform, sandbox=sandbox, timeout_s=sandbox.timeout_s, is_marked=True)
    await _undo_publish(resume)
    await _undo_start(resume)
    if resume.keeps_memory is None:
        await begin_end(platform, sandbox.sandbox_id, EndReason.NODE_LOST, detail=LOST_DETAIL)
    await _undo_reserve(resume)
