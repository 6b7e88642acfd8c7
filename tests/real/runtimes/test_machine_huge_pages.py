"""Machines in pages of 2 MiB that the host has set aside."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from firebrick.model.errors import NoCapacity
from firebrick.model.machine import RuntimeName
from firebrick.runtimes.base import Capability, RuntimeFailed
from firebrick.runtimes.firecracker.huge_pages import PAGE_MIB, taken_mib
from tests.support.runtime_bench import LIMITS, RuntimeBench

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_kvm]

POOL = Path("/proc/sys/vm/nr_hugepages")
ENOUGH_FOR_ONE = LIMITS.memory_mib // PAGE_MIB + 8


@pytest.fixture
def reserved() -> Iterator[None]:
    """Enough for one machine and no second; given back afterwards."""
    before = POOL.read_text()
    POOL.write_text(str(ENOUGH_FOR_ONE))
    try:
        if int(POOL.read_text()) < ENOUGH_FOR_ONE:
            pytest.skip("NOT RUN: this machine's memory has no room for huge pages")
        yield
    finally:
        POOL.write_text(before)


@pytest.fixture
def huge(reserved: None, bench: RuntimeBench) -> RuntimeBench:
    if bench.name is not RuntimeName.FIRECRACKER:
        pytest.skip("only microVMs have them")
    bench.restart(huge_pages=True)
    return bench


async def test_a_guest_lives_in_huge_pages(huge: RuntimeBench) -> None:
    """It does all but have its memory saved or given back. A second one that the host has no pages for is refused with
    the mend, after a restart of ours too, and starts when the first is gone."""
    assert not huge.runtime.capabilities & {Capability.KEEPS_MEMORY, Capability.GIVES_BACK}
    first = await huge.serving()
    status = await huge.runtime.inspect(first.machine_id)
    assert 16 <= taken_mib(status.pid) <= LIMITS.memory_mib
    usage = await huge.runtime.usage(first.machine_id)
    assert usage is not None
    assert usage.memory_bytes >= taken_mib(status.pid) << 20
    second = await huge.spec()
    for _ in range(2):
        with pytest.raises(NoCapacity, match="do not fit into the huge pages") as caught:
            await huge.runtime.start(second)
        assert "sysctl -w vm.nr_hugepages=" in caught.value.detail
        assert huge.left_of(second) == []
        huge.restart(huge_pages=True)
        assert await huge.runtime.recover() == (first.machine_id,)
    await huge.runtime.freeze(first.machine_id)  # type: ignore[attr-defined]
    huge.restart(huge_pages=False)
    assert await huge.runtime.recover() == (first.machine_id,)
    (huge.directory / "save").mkdir()
    with pytest.raises(RuntimeFailed, match="could not be saved") as failed:
        await huge.runtime.save_memory(first.machine_id, huge.directory / "save")  # type: ignore[attr-defined]
    assert "huge pages" in failed.value.detail
    await huge.runtime.thaw(first.machine_id)  # type: ignore[attr-defined]
    assert await huge.answers(first)
    huge.restart(huge_pages=True)
    await huge.runtime.recover()
    await huge.runtime.destroy(first.machine_id)
    await huge.runtime.start(second)
    await huge.ready(second)
