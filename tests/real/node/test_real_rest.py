"""Pause, resume, the grace bin, snapshots and forks with nothing simulated."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.model.errors import NotFound
from firebrick.model.ids import SandboxId, new_snapshot_id
from firebrick.rpc.node_api import NodeSandbox, NodeSandboxState, PauseSandbox, StartSandbox
from tests.real.node.harness import NodeUnderTest, request, run_in
from tests.support.wait import wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

MAKE = """
    echo kept > /home/user/file; echo tmp > /tmp/file; mkdir -p /home/user/a/b; echo deep > /home/user/a/b/c
    rm /etc/profile; chmod 4755 /home/user/file
"""
LOOK = """
    cat /home/user/file /tmp/file /home/user/a/b/c; stat -c %a /home/user/file; id -u
    [ -e /etc/profile ] || echo gone; cat /etc/hostname
"""
SEEN = ["kept", "tmp", "deep", "4755", "0", "gone", "sandbox"]
BEAT = "(while :; do echo x >> /tmp/beats; sleep 0.05; done) >/dev/null 2>&1 & echo $!"


async def begun(node: NodeUnderTest) -> tuple[StartSandbox, NodeSandbox]:
    """A sandbox that has written and deleted something."""
    wanted = request()
    started = await node.client.start_sandbox(wanted)
    assert (await run_in(started, MAKE, user="root"))[1] == 0
    return wanted, started


async def seen(sandbox: NodeSandbox) -> list[str]:
    return (await run_in(sandbox, LOOK, user="root"))[0].split()


def pause(sandbox_id: SandboxId, *, keep_memory: bool) -> PauseSandbox:
    return PauseSandbox(sandbox_id=sandbox_id, keep_memory=keep_memory)


async def beats(sandbox: NodeSandbox) -> int:
    return len((await run_in(sandbox, "cat /tmp/beats"))[0].split())


def host_pids(machine_id: str) -> set[int]:
    found = Path("/sys/fs/cgroup").glob(f"**/{machine_id}/**/cgroup.procs")
    return {int(word) for path in found for word in path.read_text().split()}


def cpu_ticks(pids: set[int]) -> int:
    """Of all of these processes, since they began."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total


async def test_memory_survives_a_pause_and_the_agents_death(node: NodeUnderTest) -> None:
    """Frozen, it uses no CPU; the next agent finds it frozen; resumed, the same processes go on with new settings."""
    wanted, started = await begun(node)
    pid = (await run_in(started, BEAT))[0].strip()
    assert (await node.client.pause_sandbox(pause(wanted.sandbox_id, keep_memory=True))).keeps_memory
    pids = host_pids(started.machine_id)
    before = cpu_ticks(pids)
    await node.kill_9()
    await node.start()
    (listed,) = await node.client.list_sandboxes()
    assert (listed.state, listed.keeps_memory, listed.machine_id) == (
        NodeSandboxState.PAUSED, True, started.machine_id,
    )  # fmt: skip
    assert cpu_ticks(pids) == before
    resumed = await node.client.resume_sandbox(replace(wanted, env={"GREETING": "again"}))
    assert resumed.kept_memory
    output, _ = await run_in(resumed, f"kill -0 {pid} && echo alive; echo $GREETING")
    assert output.split() == ["alive", "again"]
    count = await beats(resumed)

    async def beats_on() -> bool:
        return await beats(resumed) > count

    await wait_for(beats_on)
    assert await seen(resumed) == SEEN
    assert await node.client.kill_sandbox(wanted.sandbox_id)


async def test_a_disk_survives_without_its_machine(node: NodeUnderTest) -> None:
    """Paused without memory and resumed twice, binned and recovered: always all that was written, and no more."""
    wanted, started = await begun(node)
    for _ in range(2):
        answer = await node.client.pause_sandbox(pause(wanted.sandbox_id, keep_memory=False))
        assert (answer.keeps_memory, answer.disk_bytes > 0) == (False, True)
        assert host_pids(started.machine_id) == set()
        started = await node.client.resume_sandbox(wanted)
        assert await seen(started) == SEEN
    assert await node.client.kill_sandbox(wanted.sandbox_id, keep_disk=True)
    assert [sandbox.state for sandbox in await node.client.list_sandboxes()] == [NodeSandboxState.KEPT]
    started = await node.client.resume_sandbox(wanted)
    assert await seen(started) == SEEN
    await node.client.kill_sandbox(wanted.sandbox_id, keep_disk=True)
    assert await node.client.discard_sandbox(wanted.sandbox_id)
    with pytest.raises(NotFound):
        await node.client.resume_sandbox(wanted)


async def test_a_frozen_sandbox_that_lost_its_machine_has_its_disk(node: NodeUnderTest) -> None:
    """As after a reboot: the agent is killed, then every process of the machine; the sandbox is paused, not lost."""
    wanted, started = await begun(node)
    await node.client.pause_sandbox(pause(wanted.sandbox_id, keep_memory=True))
    await node.kill_9()
    pids = host_pids(started.machine_id)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await node.start()
    (listed,) = await node.client.list_sandboxes()
    assert (listed.state, listed.keeps_memory) == (NodeSandboxState.PAUSED, False)
    resumed = await node.client.resume_sandbox(wanted)
    assert (resumed.kept_memory, await seen(resumed)) == (False, SEEN)


async def test_snapshots_start_sandboxes_with_disks_of_their_own(node: NodeUnderTest) -> None:
    """From a running one that goes on, and from a paused one; forks do not see each other; deleting harms none."""
    wanted, started = await begun(node)
    pid = (await run_in(started, BEAT))[0].strip()
    snapshot_id = new_snapshot_id()
    snapshot = await node.client.snapshot_sandbox(wanted.sandbox_id, snapshot_id, keep_memory=True)
    assert (snapshot.runtime, snapshot.keeps_memory) == (started.runtime, False)
    assert (await run_in(started, f"kill -0 {pid} && echo alive"))[0] == "alive\n"
    forks = [await node.client.start_sandbox(replace(request(), snapshot_id=snapshot_id)) for _ in range(3)]
    for number, fork in enumerate(forks):
        assert await seen(fork) == SEEN
        await run_in(fork, f"echo {number} > /home/user/file; echo {number} >> /etc/passwd", user="root")
    assert [(await run_in(fork, "cat /home/user/file"))[0].strip() for fork in forks] == ["0", "1", "2"]
    assert await seen(started) == SEEN

    async def is_stored() -> bool:
        return all(item.stored_bytes is not None for item in await node.client.list_snapshots())

    await wait_for(is_stored, status=node.said, timeout_s=60)
    await node.client.pause_sandbox(pause(wanted.sandbox_id, keep_memory=False))
    (node.data_dir / "node" / "snapshots" / "disks" / snapshot_id / "disk").unlink()
    await node.kill_9()
    await node.start()
    from_chunks = await node.client.start_sandbox(replace(request(), snapshot_id=snapshot_id))
    assert await seen(from_chunks) == SEEN
    of_paused = new_snapshot_id()
    await node.client.snapshot_sandbox(wanted.sandbox_id, of_paused, keep_memory=False)
    assert await seen(await node.client.start_sandbox(replace(request(), snapshot_id=of_paused))) == SEEN
    for item in (snapshot_id, of_paused):
        assert await node.client.delete_snapshot(item)
    assert await node.client.list_snapshots() == ()
    assert (await run_in(forks[2], "cat /home/user/file"))[0] == "2\n"
