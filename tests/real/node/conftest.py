"""A real node, once with each runtime that this machine has."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from firebrick.builder.agent_image import build_agent_image
from firebrick.model.machine import RuntimeName
from firebrick.network.layout import instance_name
from tests.real.node.harness import NodeUnderTest, node_under_test, write_small_image
from tests.support.instance import CACHE, free_prefix
from tests.support.leaks import LeakCheck
from tests.support.runtimes import missing_runtime
from tests.support.wait import SLOWNESS

RUNTIMES = [
    pytest.param(RuntimeName.GVISOR, marks=pytest.mark.needs_runsc),
    pytest.param(RuntimeName.CONTAINER, marks=pytest.mark.needs_container),
    pytest.param(RuntimeName.FIRECRACKER, marks=pytest.mark.needs_kvm),
]


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> RuntimeName:
    name = RuntimeName(request.param)
    if (why := missing_runtime(name)) is not None:
        pytest.skip(f"NOT RUN: {why}")
    return name


@pytest.fixture
def data_dir(no_leaks: LeakCheck) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="firebrick-node-", dir="/var/tmp"))
    directory.chmod(0o711)
    # NOTE: the instance's name, by which every kernel object of it is known.
    no_leaks.watch(f"fb-{instance_name(directory)}", f"firebrick-{instance_name(directory)}", str(directory))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def node(data_dir: Path, runtime: RuntimeName) -> AsyncIterator[NodeUnderTest]:
    (CACHE / "tools").mkdir(parents=True, exist_ok=True)
    await build_agent_image(CACHE / "tools" / "agent", mirror=None)
    (data_dir / "tools").symlink_to(CACHE / "tools")
    (data_dir / "templates").mkdir()
    write_small_image(data_dir / "templates")
    settings = {"runtime": runtime, "network_prefix": free_prefix(), "slot_count": 8, "warm_count": 0}
    async with node_under_test(data_dir, **settings, patience=SLOWNESS) as node:
        yield node
