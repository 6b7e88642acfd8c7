"""Any history of starts, kills, exits, graceful restarts and kill -9: nothing is ever without an owner."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firebrick.model.ids import SandboxId, new_sandbox_id
from firebrick.model.machine import ExitCause
from firebrick.node.supervisor import NodeAgent
from firebrick.rpc.node_api import NodeSandbox
from tests.sim.node.world import Steps, World, end_all_tasks, request
from tests.support.wait import wait_for

PLACES = st.integers(0, 3)
OPERATIONS = st.one_of(
    st.tuples(st.just("start"), PLACES),
    st.tuples(st.just("kill"), PLACES),
    st.tuples(st.just("start and kill"), PLACES),
    st.tuples(st.just("exit"), PLACES),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("crash"), st.integers(1, 12)),
)


class History:
    """Plays operations against one host and keeps the answers that were given."""

    def __init__(self, root: Path, warm_count: int) -> None:
        self.world = World(root, slot_count=8)
        self.world.keep_warm(warm_count)
        self.ids = [new_sandbox_id() for _ in range(4)]
        self.answered: dict[SandboxId, NodeSandbox] = {}
        self.steps = Steps()
        self.agent: NodeAgent = self.world.build(self.steps)

    async def play(self, operations: list[tuple[str, int]]) -> None:
        await self.agent.open()
        for operation, argument in operations:
            await self.do(operation, argument)
            await self.world.assert_owned(self.agent)
            self.assert_promises(await self.agent.list_sandboxes())
        for sandbox_id in self.ids:
            await self.agent.kill_sandbox(sandbox_id)
        assert await self.agent.list_sandboxes() == ()
        await self.world.assert_owned(self.agent)
        await self.agent.close()

    def assert_promises(self, listed: tuple[NodeSandbox, ...]) -> None:
        """What was answered and not ended runs, unchanged; and no sandbox has two lives."""
        assert set(self.answered.values()) <= set(listed)
        assert len({sandbox.sandbox_id for sandbox in listed}) == len(listed)

    async def do(self, operation: str, argument: int) -> None:
        match operation:
            case "start":
                sandbox_id = self.ids[argument]
                self.answered[sandbox_id] = await self.agent.start_sandbox(request(sandbox_id))
            case "kill":
                sandbox_id = self.ids[argument]
                assert await self.agent.kill_sandbox(sandbox_id) == (sandbox_id in self.answered)
                self.answered.pop(sandbox_id, None)
            case "start and kill":
                await self.start_and_kill(self.ids[argument])
            case "exit":
                await self.exit(self.ids[argument])
            case "restart":
                await self.agent.close()
                await self.reopen()
            case "crash":
                await self.crash(argument)

    async def start_and_kill(self, sandbox_id: SandboxId) -> None:
        starting = asyncio.ensure_future(self.agent.start_sandbox(request(sandbox_id)))
        await asyncio.sleep(0)
        assert await self.agent.kill_sandbox(sandbox_id)
        await asyncio.wait({starting})
        starting.exception()
        self.answered.pop(sandbox_id, None)

    async def exit(self, sandbox_id: SandboxId) -> None:
        if (sandbox := self.answered.pop(sandbox_id, None)) is not None:
            self.world.runtime.exit_machine(sandbox.machine_id, ExitCause.GUEST_EXIT, 3)
            await wait_for(lambda: sandbox.machine_id not in self.world.runtime.machines)

    async def crash(self, crash_at: int) -> None:
        """kill -9 while one sandbox is started and another is killed."""
        self.steps.crash_at = len(self.steps.passed) + crash_at
        victim = next(iter(self.answered), None)
        if victim is not None:
            del self.answered[victim]
        works = [asyncio.ensure_future(self.agent.start_sandbox(request()))]
        if victim is not None:
            works.append(asyncio.ensure_future(self.agent.kill_sandbox(victim)))
        await wait_for(lambda: self.steps.is_dead or works[0].done())
        self.steps.is_dead = True
        await end_all_tasks()
        await self.reopen()
        for sandbox in await self.agent.list_sandboxes():
            if sandbox.sandbox_id not in self.answered:
                await self.agent.kill_sandbox(sandbox.sandbox_id)

    async def reopen(self) -> None:
        self.steps = Steps()
        self.agent = self.world.build(self.steps)
        await self.agent.open()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=st.lists(OPERATIONS, max_size=8), warm_count=st.integers(0, 1))
def test_nothing_is_ever_without_an_owner(operations: list[tuple[str, int]], warm_count: int) -> None:
    """No slot, rootfs, machine or record without an owner; no answered sandbox lost; none alive twice."""
    root = Path(tempfile.mkdtemp(prefix="firebrick-history-"))
    try:
        asyncio.run(History(root / "node", warm_count).play(operations))
    finally:
        shutil.rmtree(root)
