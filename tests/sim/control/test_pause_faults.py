"""Every step of pause, resume, snapshot, fork and the grace bin: failed before and after its effect, repeated, and cut
off by the death of the control plane. Afterwards nothing that was there is lost, and nothing is without an owner."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from firebrick.control.workflows import (
    grace_bin,
    sandbox_fork,
    sandbox_kill,
    sandbox_pause,
    sandbox_resume,
    snapshot_create,
    snapshot_delete,
)
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.control.workflows.grace_bin import BinEntry
from firebrick.control.workflows.sandbox_fork import SandboxFork
from firebrick.control.workflows.sandbox_kill import SandboxKill
from firebrick.control.workflows.sandbox_pause import SandboxPause
from firebrick.control.workflows.sandbox_resume import SandboxResume
from firebrick.control.workflows.snapshot_create import SnapshotCreate
from firebrick.control.workflows.snapshot_delete import SnapshotDelete
from firebrick.model.errors import Internal, Unavailable
from firebrick.model.ids import new_sandbox_id, new_snapshot_id, new_template_id
from firebrick.model.sandbox import EndReason, Sandbox, SandboxState
from firebrick.model.snapshot import Snapshot, SnapshotState
from firebrick.store.snapshots import snapshot_list_all, snapshot_mark_deleting
from tests.support.control import Running, World, run_control
from tests.support.wait import wait_for

PAUSE = (*sandbox_pause.BEGIN, *sandbox_pause.SETTLE)
RESUME, SNAPSHOT, FORK, DISCARD = sandbox_resume.STEPS, snapshot_create.STEPS, sandbox_fork.STEPS, grace_bin.DISCARD
BINNING, DELETE = (*sandbox_kill.BEGIN, *sandbox_kill.FINISH), snapshot_delete.STEPS


async def paused(running: Running) -> Sandbox:
    sandbox = await running.create()
    return await running.control.pausing.pause(running.team.team_id, sandbox.sandbox_id, keep_memory=True)


async def binned(running: Running) -> Sandbox:
    sandbox = await running.create(timeout_s=3)
    return await running.wait_ended(sandbox.sandbox_id, turn_s=0.5)


def pausing(running: Running, sandbox: Sandbox) -> SandboxPause:
    return SandboxPause(platform=running.control.platform, sandbox_id=sandbox.sandbox_id)


def resuming(running: Running, sandbox: Sandbox) -> SandboxResume:
    return SandboxResume(platform=running.control.platform, sandbox=sandbox, timeout_s=300)


def taking(running: Running, sandbox: Sandbox, *, is_private: bool = False) -> SnapshotCreate:
    assert sandbox.node_id is not None
    snapshot = Snapshot(
        snapshot_id=new_snapshot_id(), template_id=new_template_id(), team_id=sandbox.team_id,
        state=SnapshotState.CREATING, build_id=sandbox.build_id, source_id=sandbox.sandbox_id, node_id=sandbox.node_id,
        limits=sandbox.limits, created_at=running.world.clock.now(), is_private=is_private,
    )  # fmt: skip
    return SnapshotCreate(platform=running.control.platform, source=sandbox, snapshot=snapshot)


def forking(running: Running, sandbox: Sandbox) -> SandboxFork:
    create = taking(running, sandbox, is_private=True)
    wish = replace(
        sandbox, sandbox_id=new_sandbox_id(), state=SandboxState.CREATING, generation=1, machine_id=None, address=None,
        snapshot_id=create.snapshot.snapshot_id,
    )  # fmt: skip
    note_failed = running.control.autopsies.note_failed_create
    return SandboxFork(platform=running.control.platform, snapshot=create, wishes=[wish], note_failed=note_failed)


def discarding(running: Running, sandbox: Sandbox) -> BinEntry:
    return BinEntry(platform=running.control.platform, sandbox=sandbox)


def broken(step: Step[Any], *, after: bool) -> Step[Any]:
    async def act(context: Any) -> None:
        if after:
            await step.act(context)
        raise Unavailable("injected")

    return replace(step, act=act)


def doubled(step: Step[Any]) -> Step[Any]:
    async def act(context: Any) -> None:
        await step.act(context)
        await step.act(context)

    async def undo(context: Any) -> None:
        if step.undo is not None:
            await step.undo(context)
            await step.undo(context)

    return replace(step, act=act, undo=undo)


def subjects(context: Any) -> list[str]:
    """What a workflow works at: held while its steps run one by one, as its entry function does."""
    if isinstance(context, SandboxFork):
        return subjects(context.snapshot)
    if isinstance(context, SnapshotCreate):
        return [context.snapshot.snapshot_id]
    return [context.sandbox_id if isinstance(context, SandboxPause) else context.sandbox.sandbox_id]


async def run(running: Running, steps: Sequence[Step[Any]], context: Any) -> None:
    (subject,) = subjects(context)
    with running.control.platform.working(subject):
        await run_workflow("test", steps, context)


async def settle(running: Running) -> None:
    """Let the reconcilers finish, then everything must agree."""

    async def is_settled() -> bool:
        running.world.clock.advance(0.7)
        try:
            await running.assert_consistent()
        except AssertionError:
            return False
        return True

    try:
        await wait_for(is_settled, timeout_s=10)
    except AssertionError:
        await running.assert_consistent()
        raise


Make = Callable[[Running, Sandbox], Any]
FLOWS: list[tuple[str, Sequence[Step[Any]], Make, bool]] = [
    ("pause", PAUSE, pausing, False),
    ("resume", RESUME, resuming, True),
    ("snapshot", SNAPSHOT, taking, False),
    ("snapshot_paused", SNAPSHOT, taking, True),
    ("fork", FORK, forking, False),
]
STEPS = [
    pytest.param(steps, make, is_paused, index, id=f"{name}-{steps[index].name}")
    for name, steps, make, is_paused in FLOWS
    for index in range(len(steps))
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("steps", "make", "is_paused", "index"), STEPS)
async def test_a_failed_step_loses_nothing(
    running: Running, steps: Sequence[Step[Any]], make: Make, is_paused: bool, index: int, after: bool
) -> None:
    """When a step fails, before or after its effect, the sandbox is there afterwards, and nothing but it."""
    sandbox = await paused(running) if is_paused else await running.create()
    context = make(running, sandbox)
    chain = [doubled(step) for step in steps[:index]] + [broken(doubled(steps[index]), after=after)]
    with pytest.raises(Unavailable, match="injected"):
        await run(running, chain, context)
    await settle(running)
    living = await running.living()
    forked = {item.sandbox_id for item in getattr(context, "wishes", ())}
    assert {row.sandbox_id for row in living} - forked == {sandbox.sandbox_id}
    assert all(row.state in (SandboxState.RUNNING, SandboxState.PAUSED) for row in living)


@pytest.mark.parametrize(("steps", "make", "is_paused"), [flow[1:] for flow in FLOWS], ids=[flow[0] for flow in FLOWS])
async def test_every_step_may_be_repeated(
    running: Running, steps: Sequence[Step[Any]], make: Make, is_paused: bool
) -> None:
    """Each step done twice has the effect of once."""
    sandbox = await paused(running) if is_paused else await running.create()
    await run(running, [doubled(step) for step in steps], make(running, sandbox))
    await settle(running)


CUTS = [
    pytest.param(steps, make, is_paused, count, id=f"{name}-{count}")
    for name, steps, make, is_paused in FLOWS
    for count in range(len(steps) + 1)
]


@pytest.mark.parametrize(("steps", "make", "is_paused", "count"), CUTS)
async def test_a_workflow_cut_off_is_settled_at_restart(
    world: World, steps: Sequence[Step[Any]], make: Make, is_paused: bool, count: int
) -> None:
    """The control plane dies after any step: after the next start the sandbox is there, running or paused, whole."""
    async with run_control(world) as first:
        sandbox = await paused(first) if is_paused else await first.create()
        context = make(first, sandbox)
        # What it would still finish behind belongs to the next one.
        first.control.platform.at_work.update(subjects(context))
        for step in steps[:count]:
            await step.act(context)
    world.catalog.routes.clear()
    world.clock.advance(1)
    async with run_control(world) as second:
        await settle(second)
        assert sandbox.sandbox_id in {row.sandbox_id for row in await second.living()}


@pytest.mark.parametrize("count", range(len(DISCARD) + 1))
async def test_a_discard_cut_off_is_finished(world: World, count: int) -> None:
    """A place in the grace bin that was half emptied when the control plane died is emptied by the next."""
    async with run_control(world) as first:
        entry = discarding(first, await binned(first))
        for step in DISCARD[:count]:
            await doubled(step).act(entry)
    async with run_control(world) as second:
        await settle(second)
        assert len(world.node.kept) == (1 if count == 0 else 0)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("index", range(len(DISCARD)), ids=[step.name for step in DISCARD])
async def test_a_discard_that_fails_is_finished(running: Running, index: int, after: bool) -> None:
    """By the next sweep; what was not closed yet can be recovered until then."""
    sandbox = await binned(running)
    chain = [doubled(step) for step in DISCARD[:index]] + [broken(doubled(DISCARD[index]), after=after)]
    with pytest.raises(Unavailable, match="injected"):
        await run_workflow("test", chain, discarding(running, sandbox))
    if index == 0 and not after:
        await running.control.pausing.recover(running.team.team_id, sandbox.sandbox_id)
        await settle(running)
        assert [row.sandbox_id for row in await running.living()] == [sandbox.sandbox_id]
    else:
        await settle(running)
        assert running.world.node.kept == {}


def ending(running: Running, sandbox: Sandbox) -> SandboxKill:
    return SandboxKill(platform=running.control.platform, sandbox_id=sandbox.sandbox_id, reason=EndReason.TIMEOUT)


async def assert_recoverable(running: Running, sandbox: Sandbox) -> None:
    """Its timeout ended it, and it comes back with its disk."""
    await settle(running)
    assert await running.living() == []
    assert (await running.row(sandbox.sandbox_id)).end_reason is EndReason.TIMEOUT
    await running.control.pausing.recover(running.team.team_id, sandbox.sandbox_id)
    await settle(running)
    assert [row.state for row in await running.living()] == [SandboxState.PAUSED]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("index", range(len(BINNING)), ids=[f"{n}-{step.name}" for n, step in enumerate(BINNING)])
async def test_the_way_into_the_grace_bin_may_fail_anywhere(running: Running, index: int, after: bool) -> None:
    """A timeout whose kill fails at any step, each done twice, is finished behind; the disk is in the bin."""
    sandbox = await running.create()
    chain = [doubled(step) for step in BINNING[:index]] + [broken(doubled(BINNING[index]), after=after)]
    with pytest.raises(Unavailable, match="injected"):
        await run_workflow("test", chain, ending(running, sandbox))
    if (await running.row(sandbox.sandbox_id)).state is SandboxState.RUNNING:
        # It failed before anything was decided: the next look at the clock decides again.
        await run_workflow("test", BINNING, ending(running, sandbox))
    running.control.platform.signals.endings.poke()
    await assert_recoverable(running, sandbox)


@pytest.mark.parametrize("count", range(1, len(BINNING) + 1))
async def test_the_way_into_the_grace_bin_cut_off_is_finished(world: World, count: int) -> None:
    """The control plane dies after any step of it: the next finishes, and the disk is in the bin."""
    async with run_control(world) as first:
        sandbox = await first.create()
        context = ending(first, sandbox)
        for step in BINNING[:count]:
            await step.act(context)
    world.catalog.routes.clear()
    async with run_control(world) as second:
        await assert_recoverable(second, sandbox)


async def deleting(running: Running) -> SnapshotDelete:
    """One that its owner deleted just now: marked, and gone for everybody."""
    sandbox = await running.create()
    snapshot = await running.control.snapshots.create(
        running.team, sandbox.sandbox_id, name="saved", keep_memory=True
    )  # fmt: skip
    async with running.control.platform.database.write() as tx:
        await snapshot_mark_deleting(tx, (snapshot.snapshot_id,))
    return SnapshotDelete(platform=running.control.platform, snapshot=snapshot)


async def assert_deleted(running: Running) -> None:
    """Neither row nor node has it, and its name is free."""
    await settle(running)
    async with running.control.platform.database.read() as tx:
        assert await snapshot_list_all(tx) == ()
    assert running.world.node.snapshots == {}
    (living,) = await running.living()
    await running.control.snapshots.create(running.team, living.sandbox_id, name="saved", keep_memory=True)
    await settle(running)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("index", range(len(DELETE)), ids=[step.name for step in DELETE])
async def test_a_snapshot_delete_that_fails_is_finished(running: Running, index: int, after: bool) -> None:
    """At any step, each done twice."""
    delete = await deleting(running)
    chain = [doubled(step) for step in DELETE[:index]] + [broken(doubled(DELETE[index]), after=after)]
    with pytest.raises(Unavailable, match="injected"):
        await run_workflow("test", chain, delete)
    await assert_deleted(running)


@pytest.mark.parametrize("count", range(len(DELETE) + 1))
async def test_a_snapshot_delete_cut_off_is_finished(world: World, count: int) -> None:
    """The control plane dies after any step."""
    async with run_control(world) as first:
        delete = await deleting(first)
        first.control.platform.at_work.update([delete.snapshot.snapshot_id])
        for step in DELETE[:count]:
            await step.act(delete)
    async with run_control(world) as second:
        await assert_deleted(second)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_lost_answer_of_a_pause_is_finished_behind(running: Running, after: bool) -> None:
    """When the node's answer is lost, the caller is told to try again and the pause is finished."""
    sandbox = await running.create()

    def lose() -> None:
        (running.world.node.after if after else running.world.node.before).pop("pause_sandbox")
        raise Unavailable("lost")

    (running.world.node.after if after else running.world.node.before)["pause_sandbox"] = lose
    with pytest.raises(Unavailable, match="lost"):
        await running.control.pausing.pause(running.team.team_id, sandbox.sandbox_id, keep_memory=True)
    await settle(running)
    assert (await running.row(sandbox.sandbox_id)).state is SandboxState.PAUSED


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_resume_that_fails_stays_paused(running: Running, after: bool) -> None:
    """Whatever the node answers, or does not, the sandbox is paused as it was, and the next connect resumes it."""
    sandbox = await paused(running)
    for error in (Internal("It is still paused."), Unavailable("lost")):

        def fail(error: Exception = error) -> None:
            raise error

        (running.world.node.after if after else running.world.node.before)["resume_sandbox"] = fail
        with pytest.raises(type(error)):
            await running.control.pausing.connect(
                running.team, sandbox.sandbox_id, None, default_s=300, keep_memory=True
            )  # fmt: skip
        await settle(running)
        row = await running.row(sandbox.sandbox_id)
        assert (row.state, row.keeps_memory, row.paused_at) == (SandboxState.PAUSED, True, sandbox.paused_at)
    running.world.node.after.clear()
    running.world.node.before.clear()
    _, is_resumed = await running.control.pausing.connect(
        running.team, sandbox.sandbox_id, None, default_s=300, keep_memory=True
    )
    assert is_resumed


async def test_a_node_that_is_away_loses_no_pause(running: Running) -> None:
    """A pause whose node goes away is finished when it is back; until then connects wait and say so."""
    sandbox = await running.create()
    running.world.node.go_down()
    with pytest.raises(Unavailable):
        await running.control.pausing.pause(running.team.team_id, sandbox.sandbox_id, keep_memory=True)
    assert (await running.row(sandbox.sandbox_id)).state is SandboxState.PAUSING
    running.world.node.come_back()
    await settle(running)
    assert (await running.row(sandbox.sandbox_id)).state is SandboxState.PAUSED


async def test_a_repeated_pause_joins_the_first(running: Running) -> None:
    """A client that asks again while the pause is under way gets the pause, not a refusal."""
    sandbox = await running.create()

    def lose() -> None:
        running.world.node.before.pop("pause_sandbox")
        raise Unavailable("lost")

    running.world.node.before["pause_sandbox"] = lose
    pause = running.control.pausing.pause
    with pytest.raises(Unavailable, match="lost"):
        await pause(running.team.team_id, sandbox.sandbox_id, keep_memory=True)
    assert (await running.row(sandbox.sandbox_id)).state is SandboxState.PAUSING
    task = asyncio.ensure_future(pause(running.team.team_id, sandbox.sandbox_id, keep_memory=True))

    def is_done() -> bool:
        running.world.clock.advance(0.05)
        return task.done()

    await wait_for(is_done)
    assert (await task).state is SandboxState.PAUSED
