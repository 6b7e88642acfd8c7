"""How a microVM's monitor starts, on any machine whose /dev/kvm opens: whether its guest ever boots is not asked.

Page-table-virtualised KVM boots no ordinary guest, and yet the jailer, the jail, the cgroups and the API are the real
ones there. What needs a guest that answers is in test_machine_jail.py.
"""

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.linux.cgroup import CgroupVersion, parse_layout, read_layout
from firebrick.linux.mount import parse_mountinfo
from firebrick.linux.process import run
from firebrick.runtimes import machines
from firebrick.runtimes.base import MachineSpec, RuntimeFailed
from firebrick.runtimes.firecracker.api import MachineApi
from firebrick.runtimes.firecracker.driver import FirecrackerRuntime, host_limits
from tests.support.firecracker import JAIL, monitor_tools
from tests.support.leaks import LeakCheck
from tests.support.runtime_bench import LIMITS, RuntimeBench, runtime_bench
from tests.support.wait import wait_for

pytestmark = pytest.mark.needs_root


@pytest.fixture
async def monitors(no_leaks: LeakCheck) -> AsyncIterator[RuntimeBench]:
    await monitor_tools()
    async with runtime_bench("monitor", no_leaks) as bench:
        yield bench


async def started(bench: RuntimeBench, **changes: object) -> tuple[MachineSpec, Path]:
    """A machine whose monitor runs its guest, and that monitor's directory in /proc."""
    spec = await bench.spec(**changes)  # type: ignore[arg-type]
    status = await bench.runtime.start(spec)
    return spec, Path(f"/proc/{status.pid}")


def jail_of(bench: RuntimeBench, spec: MachineSpec) -> Path:
    return next(bench.directory.rglob(f"jails/firecracker/{spec.machine_id}/root"))


def descriptors(process: Path) -> Iterator[tuple[str, os.stat_result]]:
    """What a process has open, by the path that the kernel tells. What it closes meanwhile is left out."""
    for link in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(link), link.stat()


def groups_of(process: Path) -> dict[str, str]:
    """{controllers: cgroup} of a process; the unified hierarchy has none by name."""
    lines = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
    return {controllers: path for _, controllers, path in lines}


async def test_a_monitor_runs_as_nobody_in_a_jail(monitors: RuntimeBench) -> None:
    """A user and group of its own and no other group, no capability, seccomp, no new privileges, namespaces of its
    own; and a root directory with its files and nothing else."""
    spec, process = await started(monitors)
    said = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert set(said["Uid"].split()) == set(said["Gid"].split()) == {str(spec.user_id)}
    assert set(said["Groups"].split()) <= {"0", str(spec.user_id)}
    assert [int(said[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [0, 0, 0, 0]
    assert (said["Seccomp"], said["NoNewPrivs"]) == ("2", "1")
    for kind in ("mnt", "net", "pid"):
        assert os.readlink(process / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert (process / "ns" / "net").stat().st_ino == spec.netns.stat().st_ino
    root = process / "root"
    assert set(os.listdir(root)) == JAIL
    assert set(os.listdir(root / "dev")) <= {"kvm", "net", "urandom", "userfaultfd"}
    assert stat.S_IMODE(jail_of(monitors, spec).stat().st_mode) & 0o077 == 0


async def test_it_holds_nothing_of_ours(monitors: RuntimeBench) -> None:
    """Of files it has only those of its jail open, and the console; no socket but its own."""
    spec, process = await started(monitors)
    jail = jail_of(monitors, spec)
    held = list(descriptors(process))
    devices = {found.st_rdev for _, found in held if stat.S_ISCHR(found.st_mode)}
    files = {path for path, found in held if path.startswith("/") and not stat.S_ISCHR(found.st_mode)}
    allowed = {f"/{name}" for name in JAIL} | {str(spec.directory / "console")}
    shared = (str(jail), *(str(monitors.directory / name) for name in ("disks", "firecracker/agents")))
    assert [path for path in files if path not in allowed and not path.startswith(shared)] == []
    # Null, kvm, tun: by number, for the directory that they were opened in is gone.
    assert devices <= {os.makedev(1, 3), os.makedev(10, 232), os.makedev(10, 200)}


async def test_the_api_is_ours_alone(monitors: RuntimeBench) -> None:
    """It answers to root through the jail, pauses and goes on; no other user gets to the socket."""
    spec, _ = await started(monitors)
    jail = jail_of(monitors, spec)
    api = MachineApi(jail / "api.sock")
    assert await api.state() == "Running"
    await api.pause()
    assert await api.state() == "Paused"
    await api.resume()
    assert await api.state() == "Running"
    look = ["setpriv", "--reuid=65534", "--clear-groups", "stat", jail / "api.sock"]
    assert "Permission denied" in (await run(look, check=False)).stderr


LAYOUTS = [
    pytest.param(False, id="as-mounted"),
    pytest.param(True, id="v1-alone"),
]


@pytest.mark.parametrize("without_unified", LAYOUTS)
async def test_it_is_in_our_cgroup_in_every_hierarchy(
    monitors: RuntimeBench, monkeypatch: pytest.MonkeyPatch, without_unified: bool
) -> None:
    """With its limits, whichever of v1, v2 and both the machine mounts; the jailer, which knows one at a time, is told
    of none. v1 alone is v1 and v2 side by side, read as if the unified hierarchy were not mounted."""
    layout = read_layout()
    if without_unified:
        if layout.version is not CgroupVersion.HYBRID:
            pytest.skip(f"NOT RUN: cgroups here are {layout.version}")
        lines = Path("/proc/self/mountinfo").read_text().splitlines(keepends=True)
        layout = parse_layout("".join(line for line in lines if " - cgroup2 " not in line))
        assert layout.version is CgroupVersion.V1
        monkeypatch.setattr(machines, "read_layout", lambda: layout)
    spec, process = await started(monitors)
    ours = f"/firebrick-{monitors.instance}-firecracker/{spec.machine_id}"
    groups = groups_of(process)
    for hierarchy in layout.used:
        directory = hierarchy / ours.lstrip("/")
        assert process.name in (directory / "cgroup.procs").read_text().split(), hierarchy
    used = {hierarchy.resolve() for hierarchy in layout.used}
    for controllers, path in groups.items():
        mounted = [layout.v1[name].resolve() for name in controllers.split(",") if name in layout.v1]
        assert path == ours or not (used & set(mounted)), controllers
    limits, memory = host_limits(LIMITS), layout.hierarchy("memory")
    assert memory is not None
    name = "memory.limit_in_bytes" if layout.is_v1("memory") else "memory.max"
    assert int((memory / ours.lstrip("/") / name).read_text()) == limits.memory_bytes
    usage = await monitors.runtime.usage(spec.machine_id)
    assert usage is not None
    assert 0 < usage.process_count <= limits.process_count
    await monitors.runtime.destroy(spec.machine_id)
    await wait_for(lambda: not process.exists())
    assert monitors.left_of(spec) == []


async def test_it_outlives_its_driver(monitors: RuntimeBench) -> None:
    """Adopted by the next one, which can pause, wake and end it."""
    spec, process = await started(monitors)
    restarted = monitors.restart()
    assert isinstance(restarted, FirecrackerRuntime)
    assert await restarted.recover() == (spec.machine_id,)
    await restarted.freeze(spec.machine_id)
    await restarted.thaw(spec.machine_id)
    await restarted.destroy(spec.machine_id)
    await wait_for(lambda: not process.exists())
    assert monitors.left_of(spec) == []


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    place.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


async def test_a_template_may_lie_on_another_filesystem(monitors: RuntimeBench) -> None:
    """No link could reach it: it is bound, for the monitor alone, and the host's mounts know nothing of it."""
    with mounted(monitors.directory / "templates", "mode=0711") as templates:
        spec = await monitors.spec()
        assert spec.image is not None
        image = templates / "rootfs.erofs"
        shutil.copy(spec.image, image)
        spec = replace(spec, image=image)
        status = await monitors.runtime.start(spec)
        seen = Path(f"/proc/{status.pid}/root/image").stat()
        assert (seen.st_dev, seen.st_ino) == (image.stat().st_dev, image.stat().st_ino)
        assert seen.st_dev != jail_of(monitors, spec).stat().st_dev
        table = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
        assert not [entry for entry in table if str(spec.machine_id) in str(entry.target)]
        await monitors.runtime.destroy(spec.machine_id)


@pytest.mark.parametrize("option", ["nodev", "noexec"])
async def test_a_data_directory_where_no_jail_works_is_named(monitors: RuntimeBench, option: str) -> None:
    """The jail's /dev/kvm does not open there, or its program does not start: the machine is not started, the reason
    says why, and nothing is left."""
    tools = await monitor_tools()
    with mounted(monitors.directory / option, f"mode=0711,{option}") as place:
        runtime = FirecrackerRuntime(tools=tools, state_dir=place / "firecracker", instance=monitors.instance)
        spec = await monitors.spec()
        with pytest.raises(RuntimeFailed) as caught:
            await runtime.start(spec)
        assert f"mounted {option}" in caught.value.detail
        await runtime.close()
        assert not list(place.rglob(f"*{spec.machine_id}*"))


async def test_a_data_directory_may_lie_deep(monitors: RuntimeBench) -> None:
    """Its sockets' paths are longer than those of sockets may be."""
    deep = monitors.directory / ("d" * 80) / ("e" * 80)
    deep.mkdir(mode=0o711, parents=True)
    deep.parent.chmod(0o711)
    tools = await monitor_tools()
    runtime = FirecrackerRuntime(tools=tools, state_dir=deep / "firecracker", instance=monitors.instance)
    spec = await monitors.spec()
    await runtime.start(spec)
    await runtime.freeze(spec.machine_id)
    await runtime.destroy(spec.machine_id)
    await runtime.close()
