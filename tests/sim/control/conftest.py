from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.control import Running, World, make_world, run_control


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
async def running(world: World) -> AsyncIterator[Running]:
    """A control plane; at the end everything it knows must agree with everything there is."""
    async with run_control(world) as plane:
        yield plane
        await plane.assert_consistent()
