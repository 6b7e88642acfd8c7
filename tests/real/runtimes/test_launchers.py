"""What a launcher lets go of before its start is cut off."""

import asyncio
import os
import secrets
from pathlib import Path

import pytest

from firebrick.linux.cgroup import CgroupLimits
from firebrick.linux.process_watch import processes_with_arguments
from firebrick.model.ids import new_machine_id
from firebrick.model.machine import Limits
from firebrick.runtimes.base import CONSOLE_NAME, MachineSpec
from firebrick.runtimes.machines import DetachedMachines, StartPlan
from tests.support.wait import wait_for

pytestmark = pytest.mark.needs_root


async def test_one_that_left_its_group_makes_nothing_after_the_undo(tmp_path: Path) -> None:
    """As crun does: it goes on in a session of its own, and would make a cgroup when the machine is no more."""
    machine_id = new_machine_id()
    root = tmp_path / "runtime"
    machines = DetachedMachines(
        state_dir=tmp_path,
        runtime_root=root,
        parent=f"firebrick-{secrets.token_hex(4)}-test",
        oom_statuses=frozenset(),
        start_timeout_s=30.0,
    )
    group, told = machines.layout.all[0] / machines.cgroup(machine_id).path.removeprefix("/"), tmp_path / "told"
    late = f"touch {told}; for try in $(seq 100); do mkdir -p {group}; sleep 0.01; done"
    argv = ["/bin/sh", "-c", f"setsid sh -c '{late}' {root}/{machine_id} & exec sleep 10", f"{root}/{machine_id}"]
    plan = StartPlan(argv=argv, pid_file=tmp_path / "pid", joins_cgroup=False)
    os.mkfifo(tmp_path / CONSOLE_NAME, 0o600)
    spec = MachineSpec(
        machine_id=machine_id, directory=tmp_path, rootfs=tmp_path, agent_dir=tmp_path, netns=tmp_path, argv=("true",),
        env={}, hostname="sandbox", limits=Limits(millicpu=1000, memory_mib=64, disk_mib=64, process_count=16),
    )  # fmt: skip
    limits = CgroupLimits(millicpu=1000, memory_bytes=64 << 20, process_count=16)
    starting = asyncio.create_task(machines.start(spec, limits, lambda: plan))
    await wait_for(told.exists)
    starting.cancel()
    await asyncio.wait([starting])
    assert not machines.cgroup(machine_id).exists()
    await wait_for(lambda: not processes_with_arguments(str(root)))
    assert not machines.cgroup(machine_id).exists()
    machines.close()
