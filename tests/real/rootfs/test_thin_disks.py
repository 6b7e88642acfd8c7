"""What thin disks do beyond the contract: crashes at each step, a full pool, a device for the pool, reboots."""

import errno
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firebrick.linux import device_mapper
from firebrick.linux.loop import attached
from firebrick.linux.mount import mount, unmount
from firebrick.model.errors import DiskFull
from firebrick.model.ids import MachineId, new_machine_id
from firebrick.rootfs.base import RootfsFailed
from firebrick.rootfs.disks import CloneKind, FileDisks
from firebrick.rootfs.overlay import OverlayRootfs
from firebrick.rootfs.thin_disks import ThinDisks
from tests.support.rootfs import INSTANCE, leaks_below, make_image, place_for

pytestmark = pytest.mark.needs_root

DISK_MIB = 64
POOL_MIB = 160


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    with place_for(CloneKind.DEVMAPPER, tmp_path) as place:
        yield place / "rootfs"
        assert leaks_below(place / "rootfs") == []


async def started(root: Path, kept: frozenset[MachineId] = frozenset(), **options: Path) -> OverlayRootfs:
    disks = ThinDisks(root / "thin", instance=INSTANCE, **options)
    driver = OverlayRootfs(
        root=root, instance=INSTANCE, disks=disks, pool_size=0, disk_mib=DISK_MIB, reserve_mib=16
    )  # fmt: skip
    await driver.recover(frozenset(), kept)
    return driver


def small_pool(root: Path) -> None:
    """The file behind the pool, made before the driver would make a larger one."""
    (root / "thin").mkdir(parents=True)
    with (root / "thin" / "data").open("wb") as file:
        file.truncate(POOL_MIB << 20)


def devices() -> set[str]:
    """What of ours is in the kernel, but for the pool."""
    names = [name for name in device_mapper.device_names() if name.startswith(f"firebrick-{INSTANCE}-")]
    return {name for name in names if not name.endswith("-pool")}


def live_and_die(root: Path, steps: int) -> bool:
    """All that is done with a disk, by a process that is killed before that step; whether it came to its end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    left = steps

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    try:
        for module, names in ((device_mapper, ["_call"]), (os, ["link", "symlink", "unlink", "rename"])):
            for name in names:
                setattr(module, name, counted(getattr(module, name)))
        use_a_disk(root)
    except Exception:  # noqa: BLE001 - a process of our own, which must not go on as a second pytest
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def use_a_disk(root: Path) -> None:
    disks = ThinDisks(root / "thin", instance=INSTANCE)
    disks.open([])
    places = [root / "making" / name for name in ("first", "second", "third")]
    for place in places:
        place.mkdir(parents=True)
    first, second, third = (place / "disk.img" for place in places)
    disks.make(first, disk_mib=16)
    disks.copy(first, third)
    disks.share(first, second)
    disks.grow(second, disk_mib=32)
    for image in (first, second, third):
        disks.remove(image)
    disks.close()


async def test_a_kill_at_any_step_leaves_nothing(root: Path) -> None:
    """kill -9 before each step of making, copying, sharing, growing and removing a disk: the next start has it back."""
    survived, step, sizes = False, 0, set()
    while not survived:
        step += 1
        survived = live_and_die(root, step)
        driver = await started(root)
        assert devices() == set(), f"killed at step {step}"
        ids = {path.name for path in (root / "thin" / "ids").iterdir()}
        seeds = {path.readlink().name for path in (root / "thin" / "seeds").iterdir()}
        assert ids == seeds == {path.name for path in (root / "thin" / "sizes").iterdir()}, f"killed at step {step}"
        assert list((root / "making").iterdir()) == []
        status = device_mapper.status(f"firebrick-{INSTANCE}-pool").split()
        sizes.add(int(status[2].split("/")[0]))
        await driver.close()
    assert step > 20
    # Blocks in use: nothing, or the one empty disk.
    assert len(sizes) <= 2


async def test_what_is_kept_outlives_a_reboot(root: Path, tmp_path: Path) -> None:
    """After the kernel has forgotten every device a kept disk is there with what was written, and nothing else is."""
    image = make_image(tmp_path)
    driver = await started(root)
    kept, lost = new_machine_id(), new_machine_id()
    for machine_id in (kept, lost):
        made = await driver.prepare(machine_id, image, disk_mib=DISK_MIB)
        (made.path / "word").write_text("kept")
    await driver.keep(kept)
    await driver.keep(lost)
    await driver.close()
    assert devices() == set()
    assert device_mapper.find(f"firebrick-{INSTANCE}-pool") is None
    driver = await started(root, frozenset({kept}))
    again = await driver.prepare(new_machine_id(), image, disk_mib=DISK_MIB, disk=driver.disk(kept), shares=True)
    # The former name goes, the disk stays.
    await driver.remove(kept)
    assert (again.path / "word").read_text() == "kept"
    assert len(devices()) == 1
    await driver.remove(again.machine_id)
    assert devices() == set()
    await driver.close()


async def test_a_full_pool_refuses_and_recovers(root: Path, tmp_path: Path) -> None:
    """Where the pool has no room, new machines are refused with the mend, one that floods sees it itself, another
    writes to what it has; and room that comes back is used."""
    image = make_image(tmp_path)
    small_pool(root)
    driver = await started(root)
    machines = [await driver.prepare(new_machine_id(), image, disk_mib=DISK_MIB) for _ in range(4)]
    (machines[0].path / "own").write_bytes(os.urandom(4 << 20))
    os.sync()
    for made in machines[1:]:
        _flood(made.path / "flood")
    with pytest.raises(DiskFull, match=r"pool.*is full.*End sandboxes"):
        await driver.prepare(new_machine_id(), image, disk_mib=DISK_MIB)
    with (machines[0].path / "own").open("r+b") as file:
        file.write(os.urandom(4 << 20))
        os.fsync(file.fileno())
    for made in machines[1:]:
        await driver.remove(made.machine_id)
    made = await driver.prepare(new_machine_id(), image, disk_mib=DISK_MIB)
    (made.path / "new").write_bytes(os.urandom(8 << 20))
    os.sync()
    for machine in (made, machines[0]):
        await driver.remove(machine.machine_id)
    await driver.close()


def _flood(path: Path) -> None:
    """Write and flush until the disk will not take more."""
    reasons = "|".join(os.strerror(number) for number in (errno.ENOSPC, errno.EIO, errno.EROFS))
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match=reasons):
        while True:
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())


async def test_the_pool_on_a_device(root: Path, tmp_path: Path) -> None:
    """A blank block device is taken and kept; one that holds something is refused, unharmed, with the mend."""
    image = make_image(tmp_path)
    file = tmp_path / "device.img"
    with file.open("wb") as made:
        made.truncate(256 << 20)
    with attached(file) as device:
        with device.open("r+b", buffering=0) as used:
            used.write(b"precious")
        with pytest.raises(RootfsFailed, match=r"not blank.*blkdiscard"):
            await started(root, device=device)
        assert device.open("rb").read(8) == b"precious"
        with device.open("r+b", buffering=0) as used:
            used.write(bytes(8))
        for _ in range(2):
            driver = await started(root, device=device)
            machine_id = new_machine_id()
            await driver.prepare(machine_id, image, disk_mib=DISK_MIB)
            await driver.remove(machine_id)
            await driver.close()
        assert not (root / "thin" / "data").exists()


async def test_disks_of_another_kind_go_on(root: Path, tmp_path: Path) -> None:
    """A disk that was a file when devmapper was chosen is kept and used; the other way round the node says why not."""
    image = make_image(tmp_path)
    files = OverlayRootfs(root=root, instance=INSTANCE, pool_size=0, disk_mib=DISK_MIB, reserve_mib=16)
    await files.recover(frozenset())
    kept = new_machine_id()
    made = await files.prepare(kept, image, disk_mib=DISK_MIB)
    (made.path / "word").write_text("in a file")
    await files.keep(kept)
    await files.close()
    driver = await started(root, frozenset({kept}))
    both = [await driver.prepare(new_machine_id(), image, disk_mib=DISK_MIB, disk=driver.disk(kept), shares=shares)
            for shares in (False, True)]  # fmt: skip
    assert [(made.path / "word").read_text() for made in both] == ["in a file"] * 2
    await driver.keep(both[0].machine_id)
    with pytest.raises(RootfsFailed, match="Set disk_clones to devmapper"):
        FileDisks(root / "seeds").open([driver.disk(both[0].machine_id)])
    for machine_id in (kept, *(made.machine_id for made in both)):
        await driver.remove(machine_id)
    await driver.close()


async def test_a_snapshot_of_a_mounted_disk(root: Path) -> None:
    """A disk that is in use can be copied in one moment; both go their own ways."""
    root.mkdir(parents=True)
    disks = ThinDisks(root / "thin", instance=INSTANCE)
    disks.open([])
    places = [root / "making" / name for name in ("origin", "copy")]
    for place in places:
        (place / "disk").mkdir(parents=True)
    origin, copy = (place / "disk.img" for place in places)
    disks.make(origin, disk_mib=DISK_MIB)
    with disks.attached(origin) as device:
        mount(device, places[0] / "disk", "ext4")
    (places[0] / "disk" / "word").write_text("before")
    disks.copy(origin, copy)
    (places[0] / "disk" / "word").write_text("after")
    with disks.attached(copy) as device:
        mount(device, places[1] / "disk", "ext4")
    assert (places[1] / "disk" / "word").read_text() == "before"
    for place, image in zip(places, (origin, copy), strict=True):
        unmount(place / "disk")
        disks.remove(image)
    assert disks.close()
