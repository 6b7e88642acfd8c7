"""One instance per runtime for all end-to-end tests; each test starts and ends with no sandbox."""

import os
from collections.abc import Iterator

import pytest
from e2b import Sandbox

from tests.support.instance import Instance, instance
from tests.support.runtimes import missing_runtime


@pytest.fixture(scope="session", params=["gvisor", "container"])
def running(request: pytest.FixtureRequest) -> Iterator[Instance]:
    """An instance on one runtime, brought up by the CLI."""
    runtime: str = request.param
    why = missing_runtime(runtime)
    if why:
        pytest.skip(why)
    with instance(runtime=runtime) as found:
        yield found


@pytest.fixture
def box(running: Instance) -> Iterator[Sandbox]:
    """A fresh sandbox of the base template, through the official SDK."""
    with Sandbox.create(timeout=120, **running.sdk) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def no_sandbox_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves a sandbox behind fails."""
    yield
    if "running" in request.fixturenames:
        found: Instance = request.getfixturevalue("running")
        assert found.firebrick("sandbox", "list", "-q").stdout == "", "the test left a sandbox"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.needs_root)
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="real runtimes need root"))
