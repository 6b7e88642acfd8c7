"""Start, end and destroy, and what is left: nothing."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.linux.process import process_ref
from firebrick.model.errors import WrongState
from firebrick.model.ids import MachineId, new_machine_id
from firebrick.model.machine import ExitCause, RuntimeName
from firebrick.runtimes.base import Capability, RuntimeFailed
from tests.support.runtime_bench import SERVE, RuntimeBench
from tests.support.wait import wait_for

pytestmark = pytest.mark.needs_root


async def test_destroy_leaves_the_rootfs_free_at_once(bench: RuntimeBench) -> None:
    """When destroy returns, nothing runs, no cgroup is left and the disk can be taken away, busy guest or not."""
    spec = await bench.serving()
    await bench.run(spec, "for i in 1 2 3 4 5; do (cd /root; exec sleep 100 > /root/$i 2>&1) & done")
    await bench.runtime.destroy(spec.machine_id)
    assert bench.left_of(spec) == []
    await bench.disks.remove(spec.machine_id)
    assert not (await bench.runtime.inspect(spec.machine_id)).is_running


async def test_destroy_is_idempotent(bench: RuntimeBench) -> None:
    """Twice, at the same time, and for a machine that never was."""
    spec = await bench.serving()
    await asyncio.gather(*(bench.runtime.destroy(spec.machine_id) for _ in range(2)))
    await bench.runtime.destroy(spec.machine_id)
    await bench.runtime.destroy(new_machine_id())


async def test_a_prefix_of_an_id_is_nobody(bench: RuntimeBench) -> None:
    """Destroying `m123` leaves the machine `m123…` alone."""
    spec = await bench.serving()
    await bench.runtime.destroy(MachineId(spec.machine_id[:8]))
    await bench.runtime.destroy(MachineId(""))
    assert await bench.answers(spec)


@pytest.mark.parametrize("status", [0, 7])
async def test_the_exit_code_is_told(bench: RuntimeBench, status: int) -> None:
    """A first process that ends by itself is a guest exit with its code."""
    spec = await bench.spec("/bin/sh", "-c", f"sleep 1; exit {status}")
    await bench.runtime.start(spec)
    exited = await bench.runtime.wait_exit(spec.machine_id)
    assert (exited.cause, exited.exit_code) == (ExitCause.GUEST_EXIT, status)
    assert not (await bench.runtime.inspect(spec.machine_id)).is_running


async def test_a_destroyed_machine_says_so_to_who_waits(bench: RuntimeBench) -> None:
    """wait_exit ends with DESTROYED; for an unknown machine it is LOST."""
    spec = await bench.serving()
    waiting = asyncio.create_task(bench.runtime.wait_exit(spec.machine_id))
    await asyncio.sleep(0)
    await bench.runtime.destroy(spec.machine_id)
    assert (await waiting).cause is ExitCause.DESTROYED
    assert (await bench.runtime.wait_exit(new_machine_id())).cause is ExitCause.LOST


async def test_a_second_start_is_refused_and_harms_nothing(bench: RuntimeBench) -> None:
    """The machine that runs under that id goes on."""
    spec = await bench.serving()
    with pytest.raises(WrongState, match=spec.machine_id):
        await bench.runtime.start(spec)
    assert await bench.answers(spec)


@pytest.mark.parametrize("program", ["/no/such/program", "/etc/passwd"])
async def test_what_does_not_start_leaves_nothing(bench: RuntimeBench, program: str) -> None:
    """No program, and a file that is none: RuntimeFailed with the reason for operators, and all is undone."""
    spec = await bench.spec(program)
    if Capability.OWN_KERNEL in bench.runtime.capabilities:
        # Its kernel had started before it could be known: the exit says it, as a shell would.
        await bench.runtime.start(spec)
        exited = await bench.runtime.wait_exit(spec.machine_id)
        assert (exited.cause, exited.exit_code in (126, 127)) == (ExitCause.GUEST_EXIT, True)
        await bench.runtime.destroy(spec.machine_id)
        assert bench.left_of(spec) == []
        return
    with pytest.raises(RuntimeFailed, match=spec.machine_id) as caught:
        await bench.runtime.start(spec)
    assert any(reason in caught.value.detail.lower() for reason in ("no such file", "permission denied", "not found"))
    assert bench.left_of(spec) == []


async def test_what_ends_at_once_is_told_either_way(bench: RuntimeBench) -> None:
    """It failed to start if it is gone when start returns, else it is a guest exit."""
    spec = await bench.spec("/bin/true")
    try:
        await bench.runtime.start(spec)
        assert (await bench.runtime.wait_exit(spec.machine_id)).cause is ExitCause.GUEST_EXIT
        await bench.runtime.destroy(spec.machine_id)
    except RuntimeFailed as exc:
        detail = exc.detail
        assert "has ended" in detail
    assert bench.left_of(spec) == []


@pytest.mark.parametrize("after_ms", [0, 3, 10, 25, 60, 120])
async def test_a_cancelled_start_leaves_nothing(bench: RuntimeBench, after_ms: int) -> None:
    """Wherever it is cut off."""
    spec = await bench.spec()
    starting = asyncio.create_task(bench.runtime.start(spec))
    await asyncio.wait([starting], timeout=after_ms / 1000)
    starting.cancel()
    await asyncio.wait([starting])
    if starting.cancelled():
        assert bench.left_of(spec) == []
        assert not (await bench.runtime.inspect(spec.machine_id)).is_running


async def test_a_killed_first_process_ends_the_machine(bench: RuntimeBench) -> None:
    """Whoever kills it from the host's side: the exit is told, with the signal."""
    spec = await bench.serving()
    status = await bench.runtime.inspect(spec.machine_id)
    assert status.pid is not None
    os.kill(status.pid, signal.SIGKILL)
    exited = await bench.runtime.wait_exit(spec.machine_id)
    assert (exited.cause, exited.exit_code) == (ExitCause.GUEST_EXIT, -9)


async def test_machines_inherit_nothing_of_ours(bench: RuntimeBench) -> None:
    """Neither an open file nor the environment of the process that started it reaches any process of a machine."""
    os.environ["FIREBRICK_SECRET_FOR_TEST"] = "do not tell"
    try:
        with (bench.directory / "open").open("w") as file:
            os.set_inheritable(file.fileno(), True)
            spec = await bench.serving()
    finally:
        del os.environ["FIREBRICK_SECRET_FOR_TEST"]
    for pid in bench.pids(spec):
        place = Path(f"/proc/{pid}")
        assert b"FIREBRICK_SECRET" not in (place / "environ").read_bytes()
        opened = [os.readlink(link) for link in (place / "fd").iterdir()]
        assert str(bench.directory / "open") not in opened


async def test_a_container_needs_its_own_ids(bench: RuntimeBench) -> None:
    """Without an id shift inside's root would be the host's: refused."""
    if bench.name is not RuntimeName.CONTAINER:
        pytest.skip("only containers have a user namespace of the host's kernel")
    spec = replace(await bench.spec(), id_shift=0)
    with pytest.raises(RuntimeFailed, match="id shift"):
        await bench.runtime.start(spec)


async def test_twenty_at_once(bench: RuntimeBench) -> None:
    """All start, all answer, all go."""
    specs = [await bench.spec(*SERVE) for _ in range(20)]
    async with asyncio.TaskGroup() as group:
        for spec in specs:
            group.create_task(bench.runtime.start(spec))
    for spec in specs:
        await wait_for(lambda spec=spec: bench.answers(spec), timeout_s=60)
    pids = {pid for spec in specs for pid in bench.pids(spec)}
    refs = [ref for pid in pids if (ref := process_ref(pid)) is not None]
    async with asyncio.TaskGroup() as group:
        for spec in specs:
            group.create_task(bench.runtime.destroy(spec.machine_id))
    assert not [ref for ref in refs if ref.is_alive()]
