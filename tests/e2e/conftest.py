"""One instance per runtime for all end-to-end tests; each test starts and ends with no sandbox."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from e2b import Sandbox

from tests.lab.fleet import own_folder, running_fleet
from tests.lab.whole import INSTANCE_VARIABLE, fill_shelf, whole_instance
from tests.support.instance import Instance, instance
from tests.support.runtimes import missing_runtime
from tests.support.sdk_calls import calls_recorded, merge
from tests.support.wait import LIFETIME_S

CALLED: dict[str, set[str]] = {}
"""{runtime: methods of the SDK that tests which passed have called}."""
RESULTS_VARIABLE = "FIREBRICK_SDK_RESULTS"
"""Names a file to which `CALLED` is added at the end."""


RUNTIMES = ["gvisor", "container", pytest.param("firecracker", marks=pytest.mark.needs_kvm)]


@pytest.fixture(scope="session", params=RUNTIMES)
def running(request: pytest.FixtureRequest) -> Iterator[Instance]:
    """An instance on one runtime, brought up by the CLI."""
    runtime: str = request.param
    if runtime == "firecracker" and INSTANCE_VARIABLE in os.environ:
        fill_shelf()
        with running_fleet(own_folder()) as found, whole_instance(found.outers[0]) as inside:
            yield inside
        return
    why = missing_runtime(runtime)
    if why:
        pytest.skip(f"NOT RUN: {why}")
    with instance(runtime=runtime) as found:
        yield found


@pytest.fixture
def box(running: Instance) -> Iterator[Sandbox]:
    """A fresh sandbox of the base template, through the official SDK."""
    with Sandbox.create(timeout=LIFETIME_S, **running.sdk) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def no_sandbox_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves a sandbox behind fails."""
    yield
    if "running" in request.fixturenames:
        found: Instance = request.getfixturevalue("running")
        assert found.firebrick("sandbox", "list", "-q").stdout == "", "the test left a sandbox"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Note what a test that passes has called."""
    callspec = getattr(item, "callspec", None)
    runtime = callspec.params.get("running") if callspec is not None else None
    called: set[str] = set()
    with calls_recorded(called):
        result = yield
    if isinstance(runtime, str):
        CALLED.setdefault(runtime, set()).update(called)
    return result


def pytest_sessionfinish() -> None:
    path = os.environ.get(RESULTS_VARIABLE)
    if path:
        merge(Path(path), CALLED)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if item.path.is_relative_to(here)]
    for item in ours:
        item.add_marker(pytest.mark.needs_root)
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="real runtimes need root"))
    # What judges the others' results comes after them.
    items.sort(key=lambda item: item.path.name == "test_sdk_table.py")
