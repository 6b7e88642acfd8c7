"""The bench for each real runtime."""

from collections.abc import AsyncIterator

import pytest

from tests.support.leaks import LeakCheck
from tests.support.runtime_bench import RuntimeBench, runtime_bench

KINDS = [
    pytest.param("gvisor", marks=pytest.mark.needs_runsc),
    pytest.param("runc", marks=pytest.mark.needs_container),
    pytest.param("crun", marks=pytest.mark.needs_container),
    pytest.param("firecracker", marks=pytest.mark.needs_kvm),
]


@pytest.fixture(params=KINDS)
async def bench(request: pytest.FixtureRequest, no_leaks: LeakCheck) -> AsyncIterator[RuntimeBench]:
    async with runtime_bench(request.param, no_leaks) as made:
        yield made
