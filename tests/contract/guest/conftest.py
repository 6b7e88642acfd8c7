"""One agent per module; every test leaves it as it found it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import Sandbox

from tests.contract.guest.agent import Agent


@pytest.fixture(scope="module")
def running_agent() -> Iterator[Agent]:
    agent = Agent()
    try:
        assert agent.init().status_code == 204
        yield agent
    finally:
        assert agent.stop() == 0


@pytest.fixture
def agent(running_agent: Agent) -> Iterator[Agent]:
    """The module's agent, its children and descriptors checked afterwards."""
    before = running_agent.descriptor_count
    yield running_agent
    running_agent.check_nothing_left(before)


@pytest.fixture
def closed_agent() -> Iterator[Agent]:
    """An agent of one's own that has had no /init."""
    fresh = Agent()
    try:
        yield fresh
    finally:
        assert fresh.stop() == 0


@pytest.fixture
def sandbox(agent: Agent) -> Sandbox:
    return agent.sandbox()


@pytest.fixture
def folder(tmp_path: Path, agent: Agent) -> str:
    """A directory that the agent's user may write to and pass through."""
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(0o777)
    return str(tmp_path)
