"""The node agent of a test's own `world`."""

from collections.abc import AsyncIterator

import pytest

from firebrick.node.supervisor import NodeAgent
from tests.sim.node.world import World


@pytest.fixture
async def agent(world: World) -> AsyncIterator[NodeAgent]:
    """One that has left nothing behind when the test is over."""
    async with world.agent() as agent:
        yield agent
        await world.assert_owned(agent)
        for sandbox in await agent.list_sandboxes():
            assert await agent.kill_sandbox(sandbox.sandbox_id)
        await world.assert_empty()
