"""The whole node with nothing simulated: process, gRPC, slots, disks, runtime, guest agent."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.model.errors import FirebrickError
from firebrick.model.machine import ExitCause, RuntimeName
from tests.real.node.harness import NodeUnderTest, request, run_in
from tests.support.wait import wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]


async def test_a_sandbox_runs_commands_and_is_killed(node: NodeUnderTest, runtime: RuntimeName) -> None:
    """Its settings are inside, its agent answers at the address, and after the kill nothing does."""
    wanted = request()
    started = await node.client.start_sandbox(wanted)
    assert started.runtime is runtime
    output, code = await run_in(started, "echo $GREETING $E2B_SANDBOX_ID; id -u; cat /etc/hosts")
    assert code == 0, output
    assert output.splitlines()[:2] == [f"hello {wanted.sandbox_id}", "1000"]
    assert "sandbox" in output
    usage = await node.client.read_usage(wanted.sandbox_id)
    assert usage.memory_bytes > 0
    assert usage.cpu_ns > 0
    assert "settings taken" in [e.message for e in await node.client.read_logs(wanted.sandbox_id, start_ms=0, limit=50)]
    assert await node.client.kill_sandbox(wanted.sandbox_id)
    with pytest.raises(OSError):  # noqa: PT011 - refused, unreachable or timed out: nothing answers
        async with asyncio.timeout(2):
            await asyncio.open_connection(started.address, 49983)


async def test_kill_9_of_the_agent_ends_no_sandbox(node: NodeUnderTest) -> None:
    """Its processes go on while nobody is there, and the next agent knows it by the same answer."""
    sandboxes = [await node.client.start_sandbox(request()) for _ in range(2)]
    for sandbox in sandboxes:
        await run_in(sandbox, "(while :; do echo x >> /tmp/beats; sleep 0.1; done) >/dev/null 2>&1 & echo on")
    starting = asyncio.ensure_future(node.client.start_sandbox(request()))
    await asyncio.sleep(0)
    await node.kill_9()
    before = [len((await run_in(sandbox, "cat /tmp/beats"))[0]) for sandbox in sandboxes]
    with pytest.raises(FirebrickError):
        await starting
    await node.start()
    listed = await node.client.list_sandboxes()
    assert set(listed) == set(sandboxes)

    async def beats_on() -> bool:
        now = [len((await run_in(sandbox, "cat /tmp/beats"))[0]) for sandbox in sandboxes]
        return all(later > earlier for later, earlier in zip(now, before, strict=True))

    await wait_for(beats_on)
    for sandbox in sandboxes:
        assert await node.client.start_sandbox(replace(request(), sandbox_id=sandbox.sandbox_id)) == sandbox
        assert await node.client.kill_sandbox(sandbox.sandbox_id)
    await wait_for(lambda: all_slots_free(node), status=node.said)


async def all_slots_free(node: NodeUnderTest) -> bool:
    return (await node.client.describe()).free_slot_count == 8


async def test_a_guest_that_exits_is_told_and_cleaned_up(node: NodeUnderTest) -> None:
    """PID 1's end is the sandbox's: the stream says why, and the slot is free again."""
    exits = node.client.watch_exits()
    first = asyncio.ensure_future(anext(exits))
    started = await node.client.start_sandbox(request())
    try:
        await run_in(started, "kill -TERM 1; sleep 5", user="root")
    except Exception:  # noqa: BLE001 - the connection breaks when the guest ends, in one way or another
        pass
    ended = await asyncio.wait_for(first, 30)
    assert (ended.sandbox_id, ended.cause) == (started.sandbox_id, ExitCause.GUEST_EXIT)
    await wait_for(lambda: all_slots_free(node), status=node.said)
    await exits.aclose()  # type: ignore[attr-defined]


async def test_eight_at_once_all_run(node: NodeUnderTest) -> None:
    """As many as there are slots, at the same time."""
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(node.client.start_sandbox(request())) for _ in range(8)]
    sandboxes = [start.result() for start in starts]
    assert len({sandbox.address for sandbox in sandboxes}) == 8
    for sandbox in sandboxes:
        assert (await run_in(sandbox, "echo $E2B_SANDBOX_ID"))[0].strip() == sandbox.sandbox_id


async def test_a_warm_machine_is_a_sandbox_at_once(data_dir: Path, node: NodeUnderTest) -> None:
    """With the pool on, a create is answered from a ready machine, also from one of the process before."""
    await node.stop()
    node.env["FIREBRICK_WARM_COUNT"] = "1"
    for _ in range(2):
        await node.start()
        await wait_for(lambda: is_warm(node), status=node.said, timeout_s=60)
        await node.kill_9()
    await node.start()
    await wait_for(lambda: is_warm(node), status=node.said, timeout_s=60)
    began = time.perf_counter()
    started = await node.client.start_sandbox(request())
    print(f"warm start: {(time.perf_counter() - began) * 1000:.1f} ms")
    assert started.from_warm
    assert (await run_in(started, "echo $GREETING"))[0] == "hello\n"


async def is_warm(node: NodeUnderTest) -> bool:
    return (await node.client.describe()).warm_count == 1
