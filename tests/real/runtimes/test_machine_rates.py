"""A microVM that floods its disk, its network or its console is held to its rates, and another still comes up."""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.runtimes.base import MachineSpec
from firebrick.runtimes.firecracker.plan import TAP, Rates
from tests.support.leaks import LeakCheck
from tests.support.runtime_bench import LIMITS, OUTSIDE, RuntimeBench, runtime_bench
from tests.support.wait import wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_kvm]

DISK_BYTES_PER_S, NETWORK_BYTES_PER_S = 256 << 10, 64 << 10
RATES = Rates(disk_bytes_per_s=DISK_BYTES_PER_S, network_bytes_per_s=NETWORK_BYTES_PER_S)
ROOMY = replace(LIMITS, disk_mib=1024)
SEND = f"""
import socket
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True: link.sendto(bytes(1400), ("{OUTSIDE}", 9))
"""
FLOODS = {
    "disk": "dd if=/dev/zero of=/root/flood bs=64k count=8000 conv=notrunc oflag=direct",
    "network": f"python3 -c '{SEND}'",
}


@pytest.fixture
async def bench(no_leaks: LeakCheck) -> AsyncIterator[RuntimeBench]:
    async with runtime_bench("firecracker", no_leaks) as made:
        yield made


def disk_bytes(bench: RuntimeBench, spec: MachineSpec) -> int:
    """What the monitor has read and written, of its drives above all."""
    total = 0
    for pid in bench.pids(spec):
        words = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        total += int(words["wchar"])
    return total


def network_bytes(bench: RuntimeBench, spec: MachineSpec) -> int:
    """What has come out of the guest."""
    argv = ["ip", "-n", spec.netns.name, "-s", "-j", "link", "show", TAP]
    found = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    return int(found[0]["stats64"]["rx"]["bytes"])


COUNTS: dict[str, tuple[Callable[[RuntimeBench, MachineSpec], int], int]] = {
    "disk": (disk_bytes, DISK_BYTES_PER_S),
    "network": (network_bytes, NETWORK_BYTES_PER_S),
}


async def flooded(bench: RuntimeBench, kind: str, spec: MachineSpec, *, starts_another: bool = False) -> float:
    """Let a machine flood, and end it. How many times as much as its rate it has moved; without what its bucket holds
    at first, and as much again for what its monitor does besides."""
    count, rate = COUNTS[kind]
    flood = asyncio.create_task(bench.run(spec, f"timeout 600 {FLOODS[kind]}"))
    try:
        began_s, before = time.monotonic(), count(bench, spec)
        await wait_for(lambda: count(bench, spec) - before > 12 * rate, timeout_s=60)
        if starts_another:
            await bench.serving()
        moved, took_s = count(bench, spec) - before - 2 * rate, time.monotonic() - began_s
        return moved / (rate * took_s)
    finally:
        await bench.runtime.destroy(spec.machine_id)
        await asyncio.gather(flood, return_exceptions=True)


@pytest.mark.parametrize("kind", ["disk", "network"])
async def test_a_flood_is_held_to_its_rate(bench: RuntimeBench, kind: str) -> None:
    """What comes out of a guest that floods stays within its bucket, where without one it would not; meanwhile
    another machine starts and answers."""
    free = await flooded(bench, kind, await bench.serving(limits=ROOMY))
    bench.restart(rates=RATES)
    held = await flooded(bench, kind, await bench.serving(limits=ROOMY), starts_another=True)
    assert held <= 1 < free, f"{held:.2f} and {free:.2f} times the rate"


@pytest.mark.parametrize("kind", ["disk", "network"])
async def test_a_machine_that_goes_on_has_the_rates_of_now(bench: RuntimeBench, kind: str) -> None:
    """Whatever they were when its memory was saved: the flood of one that was free is held, and of one that was held
    it is free."""
    source = await bench.serving(limits=ROOMY)
    was_free = await bench.saved(source, "free")
    await bench.runtime.destroy(source.machine_id)
    bench.restart(rates=RATES)
    held = await flooded(bench, kind, await bench.restored(was_free, limits=ROOMY))
    source = await bench.restored(was_free, limits=ROOMY)
    was_held = await bench.saved(source, "held")
    await bench.runtime.destroy(source.machine_id)
    bench.restart(rates=Rates())
    free = await flooded(bench, kind, await bench.restored(was_held, limits=ROOMY))
    assert held <= 1 < free, f"{held:.2f} and {free:.2f} times the rate"


async def test_a_flooded_console_keeps_no_other_from_starting(bench: RuntimeBench) -> None:
    """A guest that floods its console is held to its share of the processor; meanwhile another starts and answers."""
    spec = await bench.serving(limits=replace(LIMITS, millicpu=500))
    flood = asyncio.create_task(bench.run(spec, "timeout 600 sh -c 'yes > /dev/ttyS0'"))
    try:
        before, began_s = await bench.runtime.usage(spec.machine_id), time.monotonic()
        neighbour = await bench.serving()
        after, took_s = await bench.runtime.usage(spec.machine_id), time.monotonic() - began_s
        assert before is not None
        assert after is not None
        assert (after.cpu_ns - before.cpu_ns) / 1e9 <= 0.65 * took_s
        assert await bench.answers(neighbour)
    finally:
        await bench.runtime.destroy(spec.machine_id)
        await asyncio.gather(flood, return_exceptions=True)
