"""A microVM on a disk that is a block device of the host's."""

import stat
from collections.abc import AsyncIterator

import pytest

from firebrick.model.ids import new_machine_id
from firebrick.rootfs.disks import CloneKind
from tests.support.leaks import LeakCheck
from tests.support.rootfs import needs_device_mapper
from tests.support.runtime_bench import RuntimeBench, runtime_bench

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_kvm]


@pytest.fixture
async def bench(no_leaks: LeakCheck) -> AsyncIterator[RuntimeBench]:
    needs_device_mapper()
    async with runtime_bench("firecracker", no_leaks, clones=CloneKind.DEVMAPPER) as made:
        yield made


async def test_a_thin_disk_is_the_machines_own(bench: RuntimeBench) -> None:
    """The monitor has a node of the device, owned by its user alone; what the guest wrote is there for the next
    machine, which may have a larger disk, and a neighbour has a disk of its own."""
    spec = await bench.serving()
    neighbour = await bench.serving()
    assert spec.disk_file is not None
    nodes = list((bench.directory / "firecracker").rglob(f"{spec.machine_id}/root/disk"))
    found = nodes[0].stat()
    assert stat.S_ISBLK(found.st_mode)
    assert (found.st_rdev, found.st_uid) == (spec.disk_file.stat().st_rdev, spec.user_id)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert (await bench.run(spec, "echo mine > /root/word && sync"))[0] == 0
    assert (await bench.run(neighbour, "cat /root/word"))[0] != 0
    await bench.runtime.destroy(spec.machine_id)
    await bench.disks.keep(spec.machine_id)
    again = await bench.spec(kept_disk=bench.disks.disk(spec.machine_id))
    larger = new_machine_id()
    await bench.runtime.start(again)
    await bench.ready(again)
    assert await bench.run(again, "cat /root/word") == (0, "mine\n")
    grown = await bench.disks.prepare(
        larger, again.image or bench.directory, disk_mib=1024, disk=bench.disks.disk(spec.machine_id), is_mounted=False
    )
    assert grown.disk_file is not None
    with grown.disk_file.open("rb") as device:
        assert device.seek(0, 2) == 1024 << 20
    await bench.disks.remove(larger)
