"""The life of a sandbox under a real control plane: create, expire, kill, exit, and what stays afterwards."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from firebrick.control.sandboxes import Idempotency, IdempotencyInProgress, IdempotencyMismatch, NewSandbox
from firebrick.model.egress import CLOSED
from firebrick.model.errors import Conflict, Invalid, LimitExceeded, NoCapacity, NotFound, Unavailable
from firebrick.model.ids import TeamId, new_sandbox_id
from firebrick.model.machine import ExitCause
from firebrick.model.sandbox import EndReason, SandboxState
from firebrick.store.events import event_list
from tests.support.control import Running
from tests.support.wait import wait_for


async def test_a_created_sandbox_is_everywhere(running: Running) -> None:
    """After create the row, the node, the catalog and the reservation agree; the wish reached the node whole."""
    sandbox = await running.create(metadata={"a": "b"}, env={"X": "1"}, allow_internet_access=False)
    assert sandbox.state is SandboxState.RUNNING
    request = running.world.node.requests[sandbox.sandbox_id]
    assert request.egress == CLOSED
    assert dict(request.env) == {"X": "1"}
    assert request.access_token == running.control.sandboxes.access_token(sandbox)
    assert running.world.catalog.routes[sandbox.sandbox_id].access_token == request.access_token
    assert sandbox.expires_at == running.world.clock.now() + timedelta(seconds=300)
    await running.assert_consistent()


async def test_an_open_sandbox_has_no_token(running: Running) -> None:
    """`secure: false` gives no token to the caller, the node or the edge."""
    sandbox = await running.create(secure=False)
    assert running.control.sandboxes.access_token(sandbox) is None
    assert running.world.node.requests[sandbox.sandbox_id].access_token == ""
    assert running.world.catalog.routes[sandbox.sandbox_id].access_token == ""


async def test_tokens_differ_and_stay(running: Running) -> None:
    """Two sandboxes have different tokens, and a sandbox keeps its own."""
    one, two = await running.create(), await running.create()
    token = running.control.sandboxes.access_token
    assert token(one) != token(two)
    assert token(one) == token(await running.row(one.sandbox_id))


async def test_a_kill_is_answered_from_state(running: Running) -> None:
    """Killing with a dead node answers at once; the sandbox is gone for clients and torn down when the node is back."""
    sandbox = await running.create()
    running.world.node.go_down()
    await running.control.sandboxes.kill(running.team.team_id, sandbox.sandbox_id)
    assert sandbox.sandbox_id not in running.world.catalog.routes
    with pytest.raises(NotFound):
        await running.control.sandboxes.fetch(running.team.team_id, sandbox.sandbox_id)
    with pytest.raises(NotFound):
        await running.control.sandboxes.kill(running.team.team_id, sandbox.sandbox_id)
    assert (await running.row(sandbox.sandbox_id)).state is SandboxState.ENDING
    running.world.node.come_back()
    row = await running.wait_ended(sandbox.sandbox_id, turn_s=1)
    assert row.end_reason is EndReason.KILLED


async def test_a_sandbox_ends_at_its_time(running: Running) -> None:
    """It lives a microsecond before its end and is ended when the clock reaches it, by reason of timeout."""
    sandbox = await running.create(timeout_s=3)
    running.world.clock.advance(2.999)
    assert (await running.control.sandboxes.fetch(running.team.team_id, sandbox.sandbox_id)) == sandbox
    running.world.clock.advance(0.001)
    row = await running.wait_ended(sandbox.sandbox_id)
    assert row.end_reason is EndReason.TIMEOUT
    assert row.ended_at == sandbox.expires_at
    assert running.world.catalog.tombstones[sandbox.sandbox_id].reason == "timeout"


async def test_a_longer_timeout_wins(running: Running) -> None:
    """Lengthening before the end cancels the old end; shortening to 0 ends it at once."""
    sandbox = await running.create(timeout_s=3)
    moved = await running.control.sandboxes.set_timeout(running.team, sandbox.sandbox_id, 100)
    assert moved.expires_at == running.world.clock.now() + timedelta(seconds=100)
    running.world.clock.advance(50)
    assert (await running.control.sandboxes.fetch(running.team.team_id, sandbox.sandbox_id)) == moved
    await running.control.sandboxes.set_timeout(running.team, sandbox.sandbox_id, 0)
    assert (await running.wait_ended(sandbox.sandbox_id)).end_reason is EndReason.TIMEOUT


async def test_connect_and_refresh_only_extend(running: Running) -> None:
    """A smaller timeout leaves the end equal; a larger one moves it, never beyond the maximum after the start."""
    service, team = running.control.sandboxes, running.team
    sandbox = await running.create(timeout_s=300)
    connect = partial(running.control.pausing.connect, team, sandbox.sandbox_id, default_s=300, keep_memory=True)
    assert await connect(10) == (sandbox, False)
    assert (await service.extend(team, sandbox.sandbox_id, 10)).expires_at == sandbox.expires_at
    later, _ = await connect(600)
    assert later.expires_at == running.world.clock.now() + timedelta(seconds=600)
    running.world.clock.advance(10)
    latest = await service.extend(team, sandbox.sandbox_id, team.max_timeout_s)
    assert latest.expires_at == sandbox.started_at + timedelta(seconds=team.max_timeout_s)
    with pytest.raises(Invalid):
        await service.set_timeout(team, sandbox.sandbox_id, team.max_timeout_s + 1)


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (ExitCause.OOM, EndReason.OOM),
        (ExitCause.GUEST_EXIT, EndReason.GUEST_EXIT),
        (ExitCause.LOST, EndReason.NODE_LOST),
    ],
)
@pytest.mark.parametrize("is_heard", [True, False])
async def test_an_exit_is_recorded(running: Running, cause: ExitCause, reason: EndReason, is_heard: bool) -> None:
    """A sandbox that ends by itself is ended with its cause; unheard, it is found missing and counted as lost."""
    sandbox = await running.create()
    await wait_for(lambda: running.world.node.is_watched)
    running.world.node.end(sandbox.sandbox_id, cause, detail="why", is_heard=is_heard)
    row = await running.wait_ended(sandbox.sandbox_id, turn_s=1)
    assert row.end_reason is (reason if is_heard else EndReason.NODE_LOST)
    async with running.control.platform.database.read() as tx:
        kinds = [event.kind for event in await event_list(tx, sandbox.team_id, sandbox.sandbox_id)]
    assert kinds == ["started", "ending", "ended"]


async def test_a_silent_node_ends_nothing(running: Running) -> None:
    """While a node does not answer its sandboxes stay; new ones are refused with a reason and succeed afterwards."""
    sandbox = await running.create()
    running.world.node.go_down()
    for _ in range(5):
        running.world.clock.advance(3)
        await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="No node answers"):
        await running.create()
    assert (await running.control.sandboxes.fetch(running.team.team_id, sandbox.sandbox_id)).sandbox_id
    running.world.node.come_back()
    assert (await running.create()).state is SandboxState.RUNNING


async def test_an_orphan_is_killed(running: Running) -> None:
    """A sandbox on the node that no row stands for is killed after it was seen twice."""
    sandbox = await running.create()
    stray = new_sandbox_id()
    mine = running.world.node.running[sandbox.sandbox_id]
    running.world.node.running[stray] = replace(mine, sandbox_id=stray, address="10.111.0.2")

    def is_gone() -> bool:
        running.world.clock.advance(1)
        return stray not in running.world.node.running

    await wait_for(is_gone)
    assert sandbox.sandbox_id in running.world.node.running


async def test_the_quota_holds_under_a_crowd(running: Running) -> None:
    """Of 30 creates at once 20 succeed, the others name the limit; a kill makes room at once."""

    async def attempt() -> object:
        try:
            return await running.create()
        except LimitExceeded as exc:
            return exc

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(attempt()) for _ in range(30)]
    refused = [task.result() for task in tasks if isinstance(task.result(), LimitExceeded)]
    assert len(refused) == 10
    assert "maximum number of concurrent sandboxes (20)" in str(refused[0])
    victim = next(iter(running.world.node.running))
    await running.control.sandboxes.kill(running.team.team_id, victim)
    await running.create()
    await running.wait_ended(victim)


async def test_a_full_node_says_what_is_full(running: Running) -> None:
    """Without a slot or memory the refusal names it, and nothing is left."""
    running.world.node.description = replace(running.world.node.description, memory_mib=1500)
    await running.control.platform.nodes.refresh()
    await running.create()
    with pytest.raises(NoCapacity, match="memory is full: 1024 MiB asked, 476 left"):
        await running.create()


async def test_teams_do_not_see_each_other(running: Running) -> None:
    """Another team's sandbox does not exist, for every operation."""
    sandbox = await running.create()
    stranger = TeamId("team_other")
    with pytest.raises(NotFound):
        await running.control.sandboxes.fetch(stranger, sandbox.sandbox_id)
    with pytest.raises(NotFound):
        await running.control.sandboxes.kill(stranger, sandbox.sandbox_id)
    with pytest.raises(NotFound):
        await running.control.observations.read_logs(stranger, sandbox.sandbox_id, start_ms=0, limit=1)


async def test_a_repeated_key_gives_the_same_sandbox(running: Running) -> None:
    """Same key and body: the same sandbox; another body: refused; a create that failed frees the key."""
    wish = NewSandbox(template="base", timeout_s=60)
    create = running.control.sandboxes.create
    first = await create(running.team, wish, Idempotency(key="k", body_hash="h"))
    again = await create(running.team, wish, Idempotency(key="k", body_hash="h"))
    assert again == first
    with pytest.raises(IdempotencyMismatch):
        await create(running.team, wish, Idempotency(key="k", body_hash="other"))
    running.world.node.before["start_sandbox"] = _fail
    with pytest.raises(Conflict):
        await create(running.team, wish, Idempotency(key="k2", body_hash="h"))
    running.world.node.before.clear()
    assert await create(running.team, wish, Idempotency(key="k2", body_hash="h")) != first


def _fail() -> None:
    raise Conflict("injected")


async def test_a_key_in_use_is_refused_meanwhile(running: Running) -> None:
    """While the first create with a key runs, a second is told to wait; both then mean one sandbox."""
    running.world.node.start_gate = asyncio.Event()
    wish, key = NewSandbox(template="base", timeout_s=60), Idempotency(key="k", body_hash="h")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(running.control.sandboxes.create(running.team, wish, key))
        await wait_for(running.living)
        with pytest.raises(IdempotencyInProgress):
            await running.control.sandboxes.create(running.team, wish, key)
        running.world.node.start_gate.set()
    assert (await running.control.sandboxes.create(running.team, wish, key)) == first.result()
    assert len(running.world.node.running) == 1
