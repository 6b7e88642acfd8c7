"""Limits hold against a guest that means ill, and its neighbour does not notice."""

import asyncio
import os
from dataclasses import replace

import pytest

from firebrick.model.machine import ExitCause, MachineExit, RuntimeName
from firebrick.runtimes.base import CONSOLE_NAME, MachineSpec
from firebrick.runtimes.container import driver as container
from firebrick.runtimes.firecracker import driver as firecracker
from firebrick.runtimes.gvisor import driver as gvisor
from tests.support.runtime_bench import LIMITS, RuntimeBench
from tests.support.wait import SLOWNESS, wait_for

pytestmark = pytest.mark.needs_root

OVERHEAD_MIB = {
    RuntimeName.CONTAINER: container.OVERHEAD_MIB,
    RuntimeName.GVISOR: gvisor.OVERHEAD_MIB,
    RuntimeName.FIRECRACKER: firecracker.OVERHEAD_MIB,
}
KILLS_INSIDE = "awk '/^oom_kill / {print $2}' /sys/fs/cgroup/memory.events"
EAT_MEMORY = "import mmap; blocks = []\nwhile True: blocks.append(b'x' * (1 << 20))"
FORK_BOMB = "while :; do sleep 100 & done"


async def ended(bench: RuntimeBench, spec: MachineSpec) -> MachineExit:
    async with asyncio.timeout(60 * SLOWNESS):
        return await bench.runtime.wait_exit(spec.machine_id)


async def test_a_first_process_that_eats_all_memory_ends_as_oom(bench: RuntimeBench) -> None:
    """The kernel ends this machine and no other, and the exit says why."""
    neighbour = await bench.serving()
    spec = await bench.spec("/usr/bin/python3", "-c", EAT_MEMORY)
    await bench.runtime.start(spec)
    exited = await ended(bench, spec)
    assert exited.cause is ExitCause.OOM
    usage = await bench.runtime.usage(spec.machine_id)
    assert usage is not None
    # A microVM's own kernel did it, and the host has nothing to count.
    assert usage.oom_kill_count > 0 or bench.name is RuntimeName.FIRECRACKER
    # The kernel's own memory for the end of a process may go a page or so beyond.
    assert usage.memory_peak_bytes <= (spec.limits.memory_mib + OVERHEAD_MIB[bench.name] + 1) << 20
    assert await bench.answers(neighbour)


async def test_a_machine_outlives_a_child_that_eats_all_memory(bench: RuntimeBench) -> None:
    """Only the greedy process is killed, and its memory comes back; the machine goes on."""
    spec = await bench.serving()
    status, _ = await bench.run(spec, f'python3 -c "{EAT_MEMORY}"')
    assert status != 0
    assert await bench.answers(spec)
    if bench.name is RuntimeName.FIRECRACKER:
        # Its own kernel has the memory back; what a guest has touched stays its own on the host.
        assert int((await bench.run(spec, KILLS_INSIDE))[1]) > 0
        _, available = await bench.run(spec, "awk '/^MemAvailable/ {print $2}' /proc/meminfo")
        assert int(available) > spec.limits.memory_mib * 1024 // 4
        return
    usage = await bench.runtime.usage(spec.machine_id)
    assert usage is not None
    assert usage.oom_kill_count > 0

    async def has_come_back() -> bool:
        now = await bench.runtime.usage(spec.machine_id)
        return now is not None and now.memory_bytes < spec.limits.memory_mib << 19

    # gVisor gives the memory of an ended process back behind its end.
    await wait_for(has_come_back)


async def test_a_fork_bomb_ends_at_the_process_limit(bench: RuntimeBench) -> None:
    """The guest gets no more processes than its limit; it can be destroyed at once, and its neighbour answers."""
    neighbour = await bench.serving()
    if bench.name is RuntimeName.FIRECRACKER:
        await check_fork_bomb_inside(bench)
        return
    spec = await bench.spec("/bin/bash", "-c", FORK_BOMB, limits=replace(LIMITS, process_count=64, memory_mib=512))
    await bench.runtime.start(spec)

    async def is_full() -> bool:
        usage = await bench.runtime.usage(spec.machine_id)
        status = await bench.runtime.inspect(spec.machine_id)
        # It stops at the limit, or dies of it; either is its own affair.
        return not status.is_running or (usage is not None and usage.process_count >= 64)

    await wait_for(is_full, timeout_s=60)
    usage = await bench.runtime.usage(spec.machine_id)
    assert usage is not None
    most = 64 if bench.name is RuntimeName.CONTAINER else 64 * 2 + 512
    assert usage.process_count <= most
    assert await bench.answers(neighbour)
    async with asyncio.timeout(10):
        await bench.runtime.destroy(spec.machine_id)


async def check_fork_bomb_inside(bench: RuntimeBench) -> None:
    """A guest's processes are its own kernel's; the host sees the monitor's threads alone."""
    spec = await bench.serving(limits=replace(LIMITS, process_count=64, memory_mib=512))
    await bench.run(spec, f"timeout 3 bash -c '{FORK_BOMB}' 2>/dev/null; true")
    assert int((await bench.run(spec, "cat /sys/fs/cgroup/pids.peak /sys/fs/cgroup/pids.max | head -1"))[1]) <= 64
    assert "max 0" not in (await bench.run(spec, "cat /sys/fs/cgroup/pids.events"))[1]
    usage = await bench.runtime.usage(spec.machine_id)
    assert usage is not None
    assert usage.process_count <= 2 + firecracker.THREAD_COUNT
    async with asyncio.timeout(10 * SLOWNESS):
        await bench.runtime.destroy(spec.machine_id)


async def test_processor_time_stays_within_the_quota(bench: RuntimeBench) -> None:
    """A machine with half a CPU that spins uses half a CPU."""
    spec = await bench.serving(limits=replace(LIMITS, millicpu=500))
    spin = asyncio.create_task(bench.run(spec, "timeout 3 sh -c 'while :; do :; done'; true"))
    loop = asyncio.get_running_loop()
    try:
        began_s, before = loop.time(), await bench.runtime.usage(spec.machine_id)
        assert before is not None
        await wait_for(lambda: loop.time() - began_s > 2)
        after = await bench.runtime.usage(spec.machine_id)
        assert after is not None
        share = (after.cpu_ns - before.cpu_ns) / 1e9 / (loop.time() - began_s)
        assert share <= 0.65
    finally:
        await spin


async def test_a_full_console_blocks_nobody(bench: RuntimeBench) -> None:
    """A guest that floods its console, which nobody reads, still answers, and fills no disk."""
    spec = await bench.serving()
    await bench.run(spec, "timeout 2 sh -c 'yes > /proc/1/fd/1' 2>/dev/null")
    assert await bench.answers(spec)
    assert os.stat(spec.directory / CONSOLE_NAME).st_blocks == 0


async def test_a_full_disk_is_the_machines_own(bench: RuntimeBench) -> None:
    """Writing beyond the disk limit fails with ENOSPC inside; what is deleted can be written again."""
    spec = await bench.serving(limits=replace(LIMITS, disk_mib=64))
    fill = "dd if=/dev/zero of=/root/big bs=1M count=200 2>&1"
    status, output = await bench.run(spec, fill)
    assert status != 0
    assert "No space left" in output
    assert (await bench.run(spec, "rm /root/big && dd if=/dev/zero of=/tmp/small bs=1M count=8 2>/dev/null"))[0] == 0
    assert await bench.answers(spec)
