"""Machines that give back what their guests freed."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.model.machine import Limits
from firebrick.runtimes.base import Capability, MachineSpec
from firebrick.runtimes.firecracker import filling
from firebrick.runtimes.firecracker.api import MachineApi
from firebrick.runtimes.firecracker.plan import API_SOCKET, Jail, machine_config
from tests.support.runtime_bench import LIMITS, RuntimeBench
from tests.support.wait import SLOWNESS, wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_kvm]

LARGE = replace(LIMITS, memory_mib=512)
FREED_MIB = 192
FREE = f"python3 -c 'import os; b = os.urandom(1 << 20) * {FREED_MIB}; print(len(b) >> 20)'"
"""Take memory, fill it with what is no zero, and end."""


@pytest.fixture
def givers(bench: RuntimeBench) -> RuntimeBench:
    if Capability.GIVES_BACK not in bench.runtime.capabilities:
        pytest.skip("guests of this runtime free memory that the host sees")
    bench.restart(start_timeout_s=30 * SLOWNESS)
    return bench


async def anonymous_mib(bench: RuntimeBench, spec: MachineSpec) -> int:
    status = await bench.runtime.inspect(spec.machine_id)
    words = Path(f"/proc/{status.pid}/status").read_text().split()
    return int(words[words.index("RssAnon:") + 1]) >> 10


async def take_back(bench: RuntimeBench, spec: MachineSpec) -> int:
    """MiB."""
    return int(await bench.runtime.take_back(spec.machine_id)) >> 20  # type: ignore[attr-defined]


def api_of(bench: RuntimeBench, spec: MachineSpec) -> MachineApi:
    jail = Jail(top=bench.directory / "firecracker" / "jails", machine_id=spec.machine_id)
    return MachineApi(jail.root / API_SOCKET, timeout_s=30 * SLOWNESS)


async def test_what_a_guest_freed_is_the_hosts_again(givers: RuntimeBench) -> None:
    """Most of it, and not in a save either. The guest may take all of it again, and one that has freed nothing is not
    asked. A machine that goes on from the save does the same; a balloon that a kill of ours left full is emptied."""
    spec = await givers.serving(limits=LARGE)
    assert await givers.run_for(spec, FREE, timeout_s=60 * SLOWNESS) == (0, f"{FREED_MIB}\n")
    before = await anonymous_mib(givers, spec)
    freed = await take_back(givers, spec)
    assert freed > FREED_MIB // 2
    assert await anonymous_mib(givers, spec) <= before - freed + 8
    assert await take_back(givers, spec) == 0
    save = await givers.saved(spec)
    assert (save / "memory").stat().st_blocks * 512 < FREED_MIB << 20
    await givers.runtime.destroy(spec.machine_id)

    spec = await givers.restored(save, limits=LARGE)
    assert await givers.run_for(spec, FREE, timeout_s=60 * SLOWNESS) == (0, f"{FREED_MIB}\n")
    assert await take_back(givers, spec) > FREED_MIB // 2
    api = api_of(givers, spec)
    await api.balloon(64)
    await wait_for(lambda: has_size(api, 64))
    givers.restart()
    assert await givers.runtime.recover() == (spec.machine_id,)
    await wait_for(lambda: has_size(api, 0))
    assert await givers.run_for(spec, FREE, timeout_s=60 * SLOWNESS) == (0, f"{FREED_MIB}\n")


async def has_size(api: MachineApi, size_mib: int) -> bool:
    return await api.balloon_mib() == size_mib


async def test_a_machine_of_before_goes_on_without_a_balloon(
    givers: RuntimeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version of ours saved it: it gives nothing back, and does all else."""

    def without(limits: Limits, **options: object) -> dict[str, object]:
        config = machine_config(limits, **options)  # type: ignore[arg-type]
        del config["balloon"]
        return config

    monkeypatch.setattr(filling, "machine_config", without)
    spec = await givers.serving(limits=LARGE)
    save = await givers.saved(spec)
    await givers.runtime.destroy(spec.machine_id)
    monkeypatch.undo()
    spec = await givers.restored(save, limits=LARGE)
    assert await givers.run_for(spec, FREE, timeout_s=60 * SLOWNESS) == (0, f"{FREED_MIB}\n")
    async with asyncio.timeout(10 * SLOWNESS):
        assert await take_back(givers, spec) == 0
    await givers.saved(spec, "again")
