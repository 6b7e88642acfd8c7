"""The stamp of a disk tells that it was written to, by whichever machine shares it."""

import os
import shutil
from pathlib import Path

import pytest

from firebrick.model.ids import new_machine_id
from firebrick.rootfs.overlay import OverlayRootfs
from firebrick.rootfs.sim import SimRootfs
from tests.support.rootfs import make_image

DISK_MIB = 16


async def test_a_write_changes_the_stamp_of_all_who_share_the_disk(tmp_path: Path) -> None:
    """A kept disk has the stamp that it had; one that shares it changes that by a write, a copy does not."""
    if os.geteuid() != 0 or not shutil.which("mkfs.erofs"):
        pytest.skip("disks need root and erofs-utils")
    driver = OverlayRootfs(root=tmp_path / "disks", instance="stamp", pool_size=0, disk_mib=DISK_MIB)
    await driver.recover(frozenset())
    image = make_image(tmp_path)
    kept, copy, shared = new_machine_id(), new_machine_id(), new_machine_id()
    await driver.prepare(kept, image, disk_mib=DISK_MIB, is_mounted=False)
    await driver.flush(kept)
    await driver.keep(kept)
    before = driver.stamp(kept)
    assert before
    await driver.prepare(copy, image, disk_mib=DISK_MIB, disk=driver.disk(kept), is_mounted=False)
    write(driver.disk(copy))
    await driver.prepare(shared, image, disk_mib=DISK_MIB, disk=driver.disk(kept), shares=True, is_mounted=False)
    os.chown(driver.disk(shared), 7, 7)
    assert driver.stamp(kept) == before
    write(driver.disk(shared))
    assert driver.stamp(kept) == driver.stamp(shared) != before
    for machine_id in (kept, copy, shared):
        await driver.remove(machine_id)
    assert driver.stamp(kept) == ""
    await driver.close()


def write(disk: Path) -> None:
    """What a monitor does for its guest."""
    with disk.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"written")


async def test_the_simulated_stamp_follows_what_is_written(tmp_path: Path) -> None:
    """As the real one."""
    driver = SimRootfs()
    machine_id = new_machine_id()
    await driver.prepare(machine_id, tmp_path / "image", disk_mib=DISK_MIB)
    before = driver.stamp(machine_id)
    driver.disks[machine_id] = 7
    assert driver.stamp(machine_id) != before
