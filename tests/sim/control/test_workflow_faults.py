"""Every step of create and kill: failed before and after its effect, repeated, and cut off by the death of the control
plane. Afterwards nothing is left without an owner."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from firebrick.control.background.finish_sandboxes import CREATE_ABANDONED_S, FinishSandboxes
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.control.workflows.sandbox_create import START_DEADLINE_S, STEPS, SandboxCreate
from firebrick.control.workflows.sandbox_kill import BEGIN, FINISH, SandboxKill
from firebrick.model.errors import Unavailable
from firebrick.model.ids import new_sandbox_id
from firebrick.model.sandbox import EndReason, Sandbox, SandboxState
from tests.support.control import BUILD_ID, LIMITS, Running, World, run_control
from tests.support.wait import wait_for

NAMES = [step.name for step in STEPS]


def wish(running: Running) -> SandboxCreate:
    now = running.world.clock.now()
    template_id = running.template_id
    sandbox = Sandbox(
        sandbox_id=new_sandbox_id(), team_id=running.team.team_id, template_id=template_id, build_id=BUILD_ID,
        state=SandboxState.CREATING, generation=1, limits=LIMITS, created_at=now, started_at=now,
        expires_at=now + timedelta(seconds=300), timeout_s=300,
    )  # fmt: skip
    return SandboxCreate(platform=running.control.platform, sandbox=sandbox)


def broken(step: Step[SandboxCreate], *, after: bool) -> Step[SandboxCreate]:
    async def act(context: SandboxCreate) -> None:
        if after:
            await step.act(context)
        raise Unavailable("injected")

    return replace(step, act=act)


def doubled(step: Step[SandboxCreate]) -> Step[SandboxCreate]:
    async def act(context: SandboxCreate) -> None:
        await step.act(context)
        await step.act(context)

    async def undo(context: SandboxCreate) -> None:
        if step.undo is not None:
            await step.undo(context)
            await step.undo(context)

    return replace(step, act=act, undo=undo)


async def wait_consistent(running: Running) -> None:
    async def is_settled() -> bool:
        running.world.clock.advance(1)
        return all(row.state is SandboxState.RUNNING for row in await running.living())

    await wait_for(is_settled)
    await running.assert_consistent()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_failed_step_is_undone(running: Running, name: str, after: bool) -> None:
    """When a step fails, before or after its effect, nothing of the sandbox is left; undoing twice does no harm."""
    index = NAMES.index(name)
    steps = [doubled(step) for step in STEPS[:index]] + [broken(doubled(STEPS[index]), after=after)]
    with pytest.raises(Unavailable, match="injected"):
        await run_workflow("sandbox_create", steps, wish(running))
    await wait_consistent(running)
    assert await running.living() == []


async def test_every_step_may_be_repeated(running: Running) -> None:
    """Each step done twice makes the same one sandbox."""
    create = wish(running)
    await run_workflow("sandbox_create", [doubled(step) for step in STEPS], create)
    assert create.sandbox.state is SandboxState.RUNNING
    assert len(running.world.node.running) == 1


@pytest.mark.parametrize("count", range(len(STEPS) + 1))
async def test_a_create_cut_off_is_settled_at_restart(world: World, count: int) -> None:
    """The control plane dies after any step: the next one ends what nobody was told of, and keeps what runs."""
    async with run_control(world) as first:
        create = wish(first)
        for step in STEPS[:count]:
            await step.act(create)
        if count == len(STEPS):
            await first.assert_consistent()
    world.catalog.routes.clear()
    world.clock.advance(1)
    async with run_control(world) as second:
        await wait_consistent(second)
        is_running = count >= NAMES.index("confirm") + 1
        assert len(await second.living()) == (1 if is_running else 0)


@pytest.mark.parametrize("count", range(1, NAMES.index("confirm") + 1))
async def test_a_create_whose_undo_failed_is_ended_at_once(running: Running, count: int) -> None:
    """No write worked while the disk was full, so the row is left half made by a process that lives on: it is ended by
    the next rounds, and need not be waited for as long as a create may take."""
    create = wish(running)
    for step in STEPS[:count]:
        await step.act(create)
    before = running.world.clock.now()
    running.control.platform.signals.endings.poke()
    await wait_consistent(running)
    assert await running.living() == []
    assert running.world.clock.now() - before < timedelta(seconds=START_DEADLINE_S)


async def test_a_slow_machine_has_longer_to_create(world: World) -> None:
    """A create that another process may still be at is given up when the machine's patience is over, and not before."""
    world.config = replace(world.config, patience=10.0)
    async with run_control(world) as plane:
        create = wish(plane)
        for step in STEPS[: NAMES.index("confirm")]:
            await step.act(create)
        platform = plane.control.platform
        finish = FinishSandboxes(platform, born_at=world.clock.now(), is_only_one=False)
        with platform.working(create.sandbox.sandbox_id):
            world.clock.advance(CREATE_ABANDONED_S + 1)
            await finish.round()
            assert (await plane.row(create.sandbox.sandbox_id)).state is SandboxState.CREATING
            world.clock.advance(CREATE_ABANDONED_S * 9)
            await finish.round()
            assert (await plane.row(create.sandbox.sandbox_id)).state is not SandboxState.CREATING


@pytest.mark.parametrize("count", range(len(BEGIN) + len(FINISH)))
async def test_a_kill_cut_off_is_finished_at_restart(world: World, count: int) -> None:
    """The control plane dies after any step of a kill: the next one finishes it, with its reason."""
    async with run_control(world) as first:
        sandbox = await first.create()
        world.node.before["kill_sandbox"] = _unavailable
        kill = SandboxKill(platform=first.control.platform, sandbox_id=sandbox.sandbox_id, reason=EndReason.KILLED)
        for step in [*BEGIN, *FINISH][: min(count, 3)]:
            await step.act(kill)
        world.node.before.clear()
        for step in [*BEGIN, *FINISH][3:count]:
            await step.act(kill)
    async with run_control(world) as second:
        await wait_consistent(second)
        assert len(await second.living()) == (1 if count == 0 else 0)
        if count:
            assert (await second.row(sandbox.sandbox_id)).end_reason is EndReason.KILLED


def _unavailable() -> None:
    raise Unavailable("injected")


async def test_a_node_lost_while_undoing_is_settled_later(running: Running) -> None:
    """The start's answer and its undo are both lost: the row waits in `ending` until the node is back."""

    def lose() -> None:
        running.world.node.go_down()
        raise Unavailable("lost")

    running.world.node.after["start_sandbox"] = lose
    with pytest.raises(Unavailable, match="lost"):
        await running.create()
    assert [row.state for row in await running.living()] == [SandboxState.ENDING]
    assert len(running.world.node.running) == 1
    running.world.node.after.clear()
    running.world.node.come_back()
    await wait_consistent(running)
    assert running.world.node.running == {}


async def test_a_cancelled_create_leaves_nothing(running: Running) -> None:
    """Cancelling a create in the middle of its start undoes it before the cancellation goes on."""
    running.world.node.start_gate = asyncio.Event()
    task = asyncio.ensure_future(running.create())
    await wait_for(running.living)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_consistent(running)
    assert await running.living() == []


async def test_a_restart_keeps_what_runs(world: World) -> None:
    """Sandboxes that run when the control plane stops are there after its restart, with routes and tokens; those that
    expired or ended meanwhile are ended with the right reason."""
    async with run_control(world) as first:
        stays, expires, dies = [await first.create(timeout_s=timeout) for timeout in (300, 10, 300)]
        token = first.control.sandboxes.access_token(stays)
    world.catalog.routes.clear()
    world.clock.advance(20)
    del world.node.running[dies.sandbox_id]
    async with run_control(world) as second:
        assert stays.sandbox_id in world.catalog.routes
        assert world.catalog.routes[stays.sandbox_id].access_token == token
        for gone in (expires, dies):
            await second.wait_ended(gone.sandbox_id, turn_s=1)
        await wait_consistent(second)
        assert [row.sandbox_id for row in await second.living()] == [stays.sandbox_id]
        assert (await second.row(expires.sandbox_id)).end_reason is EndReason.TIMEOUT
        assert (await second.row(dies.sandbox_id)).end_reason is EndReason.NODE_LOST
