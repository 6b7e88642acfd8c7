"""What every rootfs driver promises, over each of them."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from firebrick.model.ids import MachineId, new_machine_id
from firebrick.rootfs.base import RootfsDriver, RootfsFailed
from firebrick.rootfs.disks import CloneKind
from firebrick.rootfs.overlay import OverlayRootfs
from firebrick.rootfs.sim import SimRootfs
from tests.support.rootfs import leaks_below, make_disks, make_image, place_for
from tests.support.wait import wait_for

DISK_MIB = 16


@dataclass(frozen=True, slots=True)
class World:
    """A machine's disks. `start` opens a driver on it, as a new process of ours would."""

    image: Path
    start: Callable[[frozenset[MachineId]], Awaitable[RootfsDriver]]


@pytest.fixture(params=["sim", *(pytest.param(kind, marks=pytest.mark.needs_root) for kind in CloneKind)])
def kind(request: pytest.FixtureRequest) -> CloneKind | None:
    return None if request.param == "sim" else CloneKind(request.param)


@pytest.fixture
def place(kind: CloneKind | None, tmp_path: Path) -> Iterator[Path]:
    with place_for(kind, tmp_path) if kind is not None else contextlib.nullcontext(tmp_path) as found:
        yield found


@pytest.fixture
async def world(kind: CloneKind | None, place: Path, tmp_path: Path) -> AsyncIterator[World]:
    disks: dict[MachineId, int] = {}
    opened: list[RootfsDriver] = []
    image = make_image(tmp_path) if kind is not None else tmp_path / "rootfs.erofs"

    def driver() -> RootfsDriver:
        if kind is None:
            return SimRootfs(disks=disks)
        root = place / "disks"
        return OverlayRootfs(
            root=root, instance="contract", disks=make_disks(kind, root), pool_size=2, disk_mib=DISK_MIB, reserve_mib=64
        )

    async def start(keep: frozenset[MachineId]) -> RootfsDriver:
        made = driver()
        await made.recover(keep)
        await made.open()
        opened.append(made)
        return made

    yield World(image, start)
    for made in opened:
        await made.close()
    last = driver()
    await last.recover(frozenset())
    await last.close()
    assert disks == {}
    await wait_for(lambda: not leaks_below(place / "disks"), status=lambda: leaks_below(place / "disks"))


async def test_prepare_names_its_machine(world: World) -> None:
    """A prepared rootfs carries its machine's id and an absolute path."""
    driver = await world.start(frozenset())
    machine_id = new_machine_id()
    rootfs = await driver.prepare(machine_id, world.image, disk_mib=DISK_MIB)
    assert rootfs.machine_id == machine_id
    assert rootfs.path.is_absolute()


async def test_two_machines_have_two_trees(world: World) -> None:
    """No two machines share a path."""
    driver = await world.start(frozenset())
    first = await driver.prepare(new_machine_id(), world.image, disk_mib=DISK_MIB)
    second = await driver.prepare(new_machine_id(), world.image, disk_mib=DISK_MIB)
    assert first.path != second.path


async def test_prepare_twice_fails_and_keeps_the_first(world: World) -> None:
    """A second prepare for one machine is refused; the first rootfs stays."""
    driver = await world.start(frozenset())
    machine_id = new_machine_id()
    await driver.prepare(machine_id, world.image, disk_mib=DISK_MIB)
    with pytest.raises(RootfsFailed, match=machine_id):
        await driver.prepare(machine_id, world.image, disk_mib=DISK_MIB)
    await driver.remove(machine_id)
    await driver.prepare(machine_id, world.image, disk_mib=DISK_MIB)


async def test_remove_is_idempotent(world: World) -> None:
    """Removing twice, or a machine that never was, is fine."""
    driver = await world.start(frozenset())
    machine_id = new_machine_id()
    await driver.prepare(machine_id, world.image, disk_mib=DISK_MIB)
    await driver.remove(machine_id)
    await driver.remove(machine_id)
    await driver.remove(new_machine_id())


async def test_usage_of_an_unknown_machine_is_zero(world: World) -> None:
    """Nobody has written what no machine wrote."""
    driver = await world.start(frozenset())
    assert await driver.usage_bytes(new_machine_id()) == 0


async def test_recover_keeps_and_removes(world: World) -> None:
    """After a restart the kept machine's disk is still taken, and the other one's is gone."""
    driver = await world.start(frozenset())
    kept, orphan = new_machine_id(), new_machine_id()
    for machine_id in (kept, orphan):
        await driver.prepare(machine_id, world.image, disk_mib=DISK_MIB)
    await driver.close()
    successor = await world.start(frozenset({kept}))
    with pytest.raises(RootfsFailed):
        await successor.prepare(kept, world.image, disk_mib=DISK_MIB)
    await successor.prepare(orphan, world.image, disk_mib=DISK_MIB)
