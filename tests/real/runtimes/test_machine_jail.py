"""What a microVM's monitor can reach: its jail. And what its end takes along: its own machine, and no other."""

import os
import signal
import stat
from pathlib import Path

import pytest

from firebrick.linux.process import process_ref
from firebrick.model.machine import ExitCause, RuntimeName
from firebrick.runtimes.base import MachineSpec
from tests.support.firecracker import JAIL
from tests.support.runtime_bench import RuntimeBench
from tests.support.wait import wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_kvm]


@pytest.fixture
def microvms(bench: RuntimeBench) -> RuntimeBench:
    if bench.name is not RuntimeName.FIRECRACKER:
        pytest.skip("only microVMs have a monitor in a jail")
    return bench


async def monitor(bench: RuntimeBench, spec: MachineSpec) -> Path:
    status = await bench.runtime.inspect(spec.machine_id)
    assert status.pid is not None
    return Path(f"/proc/{status.pid}")


async def test_the_monitor_has_nothing(microvms: RuntimeBench) -> None:
    """A user of its own, no capability, seccomp, namespaces of its own, and a root directory with its files only, of
    which it can write its disk, its report and what it made itself."""
    spec = await microvms.serving()
    neighbour = await microvms.serving()
    process = await monitor(microvms, spec)
    said = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert set(said["Uid"].split()) == set(said["Gid"].split()) == {str(spec.user_id)}
    assert spec.user_id != neighbour.user_id
    assert (int(said["CapEff"], 16), int(said["CapPrm"], 16), said["Seccomp"]) == (0, 0, "2")
    for kind in ("mnt", "net", "pid"):
        own = {os.readlink(place / "ns" / kind) for place in (process, Path("/proc/self"))}
        assert len(own) == 2, kind
    root = process / "root"
    assert set(os.listdir(root)) == JAIL
    assert set(os.listdir(root / "dev")) <= {"kvm", "net", "urandom", "userfaultfd"}
    for path in root.rglob("*"):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and path.name not in ("config.json", "disk", "report", "spec"):
            assert found.st_uid == 0, path
            assert not found.st_mode & 0o022, path
    options = {line.split()[4]: line.split()[5] for line in (process / "mountinfo").read_text().splitlines()}
    for name in ("image", "agent", "vmlinux", "initrd"):
        assert "ro" in options[f"/{name}"].split(","), name
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(spec.machine_id) in line]


async def test_the_guest_sees_no_host(microvms: RuntimeBench) -> None:
    """No metadata service, no way to write the shared drives, and what it writes to its report is only words."""
    spec = await microvms.serving()
    ask = "import socket; socket.create_connection(('169.254.169.254', 80), 2)"
    assert (await microvms.run(spec, f'python3 -c "{ask}"'))[0] != 0
    for drive in ("vda", "vdc", "vdd"):
        status, _ = await microvms.run(spec, f"dd if=/dev/zero of=/dev/{drive} bs=512 count=1 oflag=direct")
        assert status != 0, drive
    await microvms.run(spec, "head -c 512 /dev/urandom > /dev/vde; sync")
    assert await microvms.answers(spec)


async def test_a_killed_monitor_takes_only_its_machine(microvms: RuntimeBench) -> None:
    """Its exit is LOST, for the guest had not ended; its neighbour answers, and nothing of it is left."""
    neighbour, spec = await microvms.serving(), await microvms.serving()
    status = await microvms.runtime.inspect(spec.machine_id)
    assert status.pid is not None
    ref = process_ref(status.pid)
    assert ref is not None
    ref.send(signal.SIGSEGV)
    assert (await microvms.runtime.wait_exit(spec.machine_id)).cause is ExitCause.LOST
    await microvms.runtime.destroy(spec.machine_id)
    assert microvms.left_of(spec) == []
    assert await microvms.answers(neighbour)


async def test_a_paused_machine_is_adopted_and_goes_on(microvms: RuntimeBench) -> None:
    """Paused by one driver, found by the next, resumed by that: its processes never noticed."""
    spec = await microvms.serving()
    runtime = microvms.runtime
    await runtime.freeze(spec.machine_id)  # type: ignore[attr-defined]
    before = await runtime.usage(spec.machine_id)
    restarted = microvms.restart()
    assert await restarted.recover() == (spec.machine_id,)
    await restarted.thaw(spec.machine_id)  # type: ignore[attr-defined]
    await restarted.thaw(spec.machine_id)  # type: ignore[attr-defined]
    await wait_for(lambda: microvms.answers(spec))
    after = await restarted.usage(spec.machine_id)
    assert before is not None
    assert after is not None
    assert after.cpu_ns > before.cpu_ns
