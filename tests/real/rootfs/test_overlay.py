"""What overlay rootfs do on a real kernel: bounds, sharing, shifting, crashes, full disks."""

import asyncio
import errno
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from firebrick.linux.loop import attached
from firebrick.linux.mount import mount, mounts_below, unmount
from firebrick.linux.process import run
from firebrick.model.errors import DiskFull
from firebrick.model.ids import MachineId, new_machine_id
from firebrick.rootfs.base import RootfsFailed
from firebrick.rootfs.disks import CloneKind
from firebrick.rootfs.overlay import OverlayRootfs
from tests.support.rootfs import leaks_below, make_disks, make_image, place_for
from tests.support.wait import wait_for

pytestmark = pytest.mark.needs_root

DISK_MIB = 16
SHIFT = 100_000


class Disks:
    """One directory of rootfs; drivers come and go on it."""

    def __init__(self, kind: CloneKind, directory: Path, place: Path) -> None:
        self.kind = kind
        self.image = make_image(directory)
        self.root = place / "disks, with: marks"
        self.opened: list[OverlayRootfs] = []

    def driver(self, *, pool_size: int = 2) -> OverlayRootfs:
        disks = make_disks(self.kind, self.root)
        return OverlayRootfs(
            root=self.root, instance="test", disks=disks, pool_size=pool_size, disk_mib=DISK_MIB, reserve_mib=1
        )

    async def start(self, *, keep: frozenset[MachineId] = frozenset()) -> OverlayRootfs:
        driver = self.driver()
        await driver.recover(keep)
        await driver.open()
        self.opened.append(driver)
        return driver

    async def prepare(self, driver: OverlayRootfs) -> tuple[MachineId, Path]:
        machine_id = new_machine_id()
        return machine_id, (await driver.prepare(machine_id, self.image, disk_mib=DISK_MIB)).path


@pytest.fixture(params=CloneKind)
def kind(request: pytest.FixtureRequest) -> CloneKind:
    return CloneKind(request.param)


@pytest.fixture
def place(kind: CloneKind, tmp_path: Path) -> Iterator[Path]:
    with place_for(kind, tmp_path) as found:
        yield found


@pytest.fixture
async def disks(kind: CloneKind, place: Path, tmp_path: Path) -> AsyncIterator[Disks]:
    made = Disks(kind, tmp_path, place)
    yield made
    for driver in made.opened:
        await driver.close()
    last = made.driver(pool_size=0)
    await last.recover(frozenset())
    await last.close()
    await wait_for(lambda: not leaks_below(made.root), status=lambda: leaks_below(made.root))


def fill(path: Path) -> int:
    """Write until the disk is full; the bytes that fitted."""
    written = 0
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left") as failure:
        while True:
            written += file.write(b"x" * 65536)
    assert failure.value.errno == errno.ENOSPC
    return written


async def test_image_is_read_and_never_written(disks: Disks) -> None:
    """A machine sees the image, changes its own copy, and the next machine sees the image again."""
    driver = await disks.start()
    _, first = await disks.prepare(driver)
    (first / "etc" / "name").write_text("mine\n")
    _, second = await disks.prepare(driver)
    assert (first / "etc" / "name").read_text() == "mine\n"
    assert (second / "link").read_text() == "from the image\n"


async def test_full_disk_stops_at_its_owner(disks: Disks) -> None:
    """A machine that fills its disk gets ENOSPC at its limit; its neighbour still writes."""
    driver = await disks.start()
    full, path = await disks.prepare(driver)
    _, neighbour = await disks.prepare(driver)
    written = await asyncio.to_thread(fill, path / "big")
    assert DISK_MIB * 0.8 < written / 2**20 <= DISK_MIB
    (neighbour / "small").write_text("fits")
    os.sync()
    assert written <= await driver.usage_bytes(full) <= DISK_MIB * 2**20


async def test_deleting_gives_host_space_back(disks: Disks) -> None:
    """What a machine deletes leaves the host's disk too."""
    driver = await disks.start()
    machine_id, path = await disks.prepare(driver)
    (path / "big").write_bytes(os.urandom(8 << 20))
    os.sync()
    assert await driver.usage_bytes(machine_id) > 8 << 20
    (path / "big").unlink()
    os.sync()

    async def is_small() -> bool:
        return await driver.usage_bytes(machine_id) < 2 << 20

    await wait_for(is_small)


async def test_idle_machine_costs_little_disk(disks: Disks) -> None:
    """A fresh clone takes less than half a MiB of the host's disk."""
    driver = await disks.start()
    machine_id, _ = await disks.prepare(driver)
    # A thin disk counts in blocks of 64 KiB, and those of the empty disk too, which all share.
    assert await driver.usage_bytes(machine_id) < (1 << 20 if disks.kind is CloneKind.DEVMAPPER else 512 << 10)


async def test_files_behave_as_on_a_disk(disks: Disks) -> None:
    """User attributes, renamed directories of the image, stable inode numbers and set-uid all work."""
    driver = await disks.start()
    _, path = await disks.prepare(driver)
    before = (path / "etc" / "name").stat()
    os.setxattr(path / "etc" / "name", "user.tag", b"1")
    after = (path / "etc" / "name").stat()
    assert os.getxattr(path / "etc" / "name", "user.tag") == b"1"
    assert (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino)
    os.rename(path / "opt" / "pack", path / "opt" / "moved")
    assert (path / "opt" / "moved" / "file").read_text() == "packed\n"
    options = next(entry.options for entry in mounts_below(path))
    assert "nosuid" not in options
    assert "nodev" in options


async def test_ids_are_shifted_without_a_chown(disks: Disks) -> None:
    """With a shift, inside's root owns the tree as `id_shift` on the host, and its writes too."""
    driver = await disks.start()
    machine_id = new_machine_id()
    path = (await driver.prepare(machine_id, disks.image, disk_mib=DISK_MIB, id_shift=SHIFT)).path
    assert {item.stat().st_uid for item in (path, path / "etc", path / "etc" / "name")} == {SHIFT}
    await run(
        ["setpriv", f"--reuid={SHIFT}", f"--regid={SHIFT}", "--clear-groups", "sh", "-c", "echo x >> etc/name"],
        cwd=path,
    )  # fmt: skip
    assert (path / "etc" / "name").read_text() == "from the image\nx\n"
    assert await driver.usage_bytes(machine_id) < 1 << 20


KILLED = """
import asyncio, sys
from pathlib import Path
from firebrick.model.ids import new_machine_id
from firebrick.rootfs.disks import CloneKind
from firebrick.rootfs.overlay import OverlayRootfs
from tests.support.rootfs import make_disks

async def main(kind, root, image):
    disks = make_disks(CloneKind(kind), Path(root))
    driver = OverlayRootfs(root=Path(root), instance="test", disks=disks, pool_size=2, disk_mib=16, reserve_mib=1)
    await driver.recover(frozenset())
    await driver.open()
    while True:
        rootfs = await driver.prepare(new_machine_id(), Path(image), disk_mib=16)
        print(rootfs.machine_id, file=sys.stderr, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_running_machine_survives_a_kill(disks: Disks) -> None:
    """kill -9 of the driver's process at any moment: the next one adopts what is kept and clears the rest."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, disks.kind, str(disks.root), str(disks.image), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    machine_id = MachineId((await process.stderr.readline()).decode().strip())
    path = disks.root / "machines" / machine_id / "rootfs"
    (path / "work").write_text("half done")
    await process.stderr.readline()
    process.kill()
    await process.wait()
    with (path / "work").open() as open_file:
        driver = await disks.start(keep=frozenset({machine_id}))
        assert open_file.read() == "half done"
    assert [item.name for item in (disks.root / "machines").iterdir()] == [machine_id]
    await driver.remove(machine_id)
    assert not path.exists()


async def test_half_made_uppers_are_cleared(disks: Disks) -> None:
    """What a crash left in the making, mounted or not, is gone after recovery."""
    driver = await disks.start()
    await disks.prepare(driver)
    await driver.close()
    mounted = disks.root / "making" / "1-mounted"
    (mounted / "disk").mkdir(parents=True)
    left = make_disks(disks.kind, disks.root)
    left.open([])
    left.make(mounted / "disk.img", disk_mib=DISK_MIB)
    with left.attached(mounted / "disk.img") as device:
        mount(device, mounted / "disk", "ext4")
    (disks.root / "making" / "2-empty").mkdir()
    await disks.start()
    assert [item.name for item in (disks.root / "making").iterdir() if item.name in ("1-mounted", "2-empty")] == []


async def test_busy_disk_is_refused_in_words(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk still in use is not torn away: remove fails, names the machine, and works once it is free."""
    monkeypatch.setattr("firebrick.rootfs.upper.UNMOUNT_PATIENCE_S", 0.05)
    driver = await disks.start()
    machine_id, path = await disks.prepare(driver)
    with (path / "held").open("w") as held:
        with pytest.raises(RootfsFailed, match=machine_id):
            await driver.remove(machine_id)
        held.write("still writable")
    await driver.remove(machine_id)
    assert not path.exists()


async def test_busy_orphan_does_not_stop_recovery(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that somebody still holds is left for the next recovery; the driver serves meanwhile."""
    monkeypatch.setattr("firebrick.rootfs.upper.UNMOUNT_PATIENCE_S", 0.05)
    driver = await disks.start()
    _, path = await disks.prepare(driver)
    with (path / "held").open("w"):
        await driver.close()
        driver = await disks.start()
        await disks.prepare(driver)
        assert path.exists()


async def test_missing_image_leaves_nothing(disks: Disks, tmp_path: Path) -> None:
    """Preparing from an image that is not there fails and leaves no directory of the machine."""
    driver = await disks.start()
    machine_id = new_machine_id()
    with pytest.raises(RootfsFailed, match=machine_id):
        await driver.prepare(machine_id, tmp_path / "absent.erofs", disk_mib=DISK_MIB)
    assert not (disks.root / "machines" / machine_id).exists()


async def test_full_host_refuses_new_machines(disks: Disks, tmp_path: Path) -> None:
    """On a full host disk prepare fails with a reason instead of handing out a disk that would corrupt."""
    small = tmp_path / "host.img"
    small.touch()
    os.truncate(small, 64 << 20)
    await run(["mkfs.ext4", "-q", "-F", small])
    host = tmp_path / "host"
    host.mkdir()
    with attached(small) as device:
        mount(device, host, "ext4")
    driver = OverlayRootfs(root=host / "disks", instance="test", pool_size=0, disk_mib=DISK_MIB, reserve_mib=16)
    try:
        await driver.recover(frozenset())
        with (host / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, 40 << 20)
        with pytest.raises(DiskFull, match=r"disk is full.*Free space"):
            await driver.prepare(new_machine_id(), disks.image, disk_mib=DISK_MIB)
        (host / "ballast").unlink()
        machine_id = new_machine_id()
        await driver.prepare(machine_id, disks.image, disk_mib=DISK_MIB)
        with (host / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, 40 << 20)
        # What would not fit is not even tried: the kernel forgets what it found no room for.
        with pytest.raises(DiskFull, match="disk is full"):
            await driver.flush(machine_id)
        (host / "ballast").unlink()
        await driver.flush(machine_id)
        await driver.remove(machine_id)
        await driver.close()
    finally:
        unmount(host)


async def test_many_at_once_are_all_served(disks: Disks) -> None:
    """Twenty prepares at the same time give twenty separate trees."""
    driver = await disks.start()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(disks.prepare(driver)) for _ in range(20)]
    paths = {task.result()[1] for task in tasks}
    assert len(paths) == 20
    assert all((path / "etc" / "name").exists() for path in paths)


async def is_cancelled_half_way(disks: Disks, driver: OverlayRootfs, machine_id: MachineId) -> bool:
    """Prepare and cancel; False: it was done before it could be cancelled."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(driver.prepare(machine_id, disks.image, disk_mib=32))
        await wait_for(lambda: any((disks.root / "making").iterdir()) or task.done())
        task.cancel()
    return task.cancelled()


async def test_cancelled_prepare_leaves_nothing(disks: Disks) -> None:
    """A prepare that is cancelled half-way takes back what it made."""
    driver = await disks.start()
    machine_id = new_machine_id()
    while not await is_cancelled_half_way(disks, driver, machine_id):
        await driver.remove(machine_id)
        machine_id = new_machine_id()
    assert not (disks.root / "machines" / machine_id).exists()


async def test_a_disk_file_is_left_for_a_kernel_of_the_machines_own(disks: Disks) -> None:
    """Nothing is mounted; it is kept over a restart, captured and removed as any other, and another runtime's machine
    may go on with it."""
    driver = await disks.start()
    machine_id = new_machine_id()
    made = await driver.prepare(machine_id, disks.image, disk_mib=DISK_MIB, is_mounted=False)
    assert made.disk_file == driver.disk(machine_id)
    assert not [entry for entry in mounts_below(disks.root / "machines")]
    write_as_a_guest(driver.disk(machine_id))
    await driver.close()
    restarted = await disks.start(keep=frozenset({machine_id}))
    assert driver.disk(machine_id).exists()
    copy = disks.root / "copy.img"
    await restarted.capture(machine_id, copy)
    await restarted.keep(machine_id)
    other = await restarted.prepare(new_machine_id(), disks.image, disk_mib=DISK_MIB, disk=copy)
    assert (other.path / "written").read_text() == "by a guest\n"
    await restarted.remove(other.machine_id)
    again = await restarted.prepare(new_machine_id(), disks.image, disk_mib=DISK_MIB, disk=copy, is_mounted=False)
    await restarted.remove(again.machine_id)
    await restarted.remove(machine_id)
    assert not driver.disk(machine_id).exists()
    copy.unlink()


async def test_a_disk_grows_and_never_shrinks(disks: Disks) -> None:
    """A machine with more disk than the one it goes on from has all of it, and what was there; with less it has as
    much."""
    driver = await disks.start()
    first, path = await disks.prepare(driver)
    (path / "word").write_text("small")
    copy = disks.root / "copy.img"
    await driver.capture(first, copy)
    await driver.mend(copy)
    await driver.keep(first)
    for disk, shares, disk_mib in ((copy, False, 512), (copy, False, 8), (driver.disk(first), True, 1024)):
        made = await driver.prepare(new_machine_id(), disks.image, disk_mib=disk_mib, disk=disk, shares=shares)
        size = os.statvfs(made.path)
        assert max(disk_mib, DISK_MIB) * 0.8 < size.f_blocks * size.f_frsize / 2**20 <= max(disk_mib, DISK_MIB)
        assert (made.path / "word").read_text() == "small"
        await driver.remove(made.machine_id)
    await driver.remove(first)
    copy.unlink()


async def test_disks_that_nobody_mounts_are_made_ahead_too(disks: Disks) -> None:
    """From the first machine on that has a kernel of its own the next ones take a disk that is there."""
    driver = await disks.start()
    pool = disks.root / "pool"
    assert not list(pool.glob("file-*"))
    await driver.prepare(new_machine_id(), disks.image, disk_mib=DISK_MIB, is_mounted=False)
    await wait_for(lambda: len(list(pool.glob("file-*"))) == 2)
    ready = {path.stat().st_ino for path in pool.glob("file-*")}
    made = await driver.prepare(new_machine_id(), disks.image, disk_mib=DISK_MIB, is_mounted=False)
    assert made.disk_file is not None
    assert made.disk_file.parent.stat().st_ino in ready
    await driver.close()
    assert not list(pool.iterdir())


def write_as_a_guest(disk: Path) -> None:
    """What an init script and a guest do with it: an upper of its own, and a file."""
    with tempfile.TemporaryDirectory() as place, attached(disk) as device:
        mount(device, Path(place), "ext4")
        try:
            (Path(place) / "upper").mkdir(mode=0o755)
            (Path(place) / "work").mkdir(mode=0o700)
            (Path(place) / "upper" / "written").write_text("by a guest\n")
        finally:
            unmount(Path(place))
