"""Clone a template's image for one machine, and take the clone away: `prepare` and `remove` of the rootfs driver.

python -m benchmarks.clone IMAGE     (an EROFS image, such as <templates_dir>/<build_id>/rootfs.erofs; as root)
"""

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

from benchmarks.figures import Figures, machine
from firebrick.model.ids import MachineId, new_machine_id
from firebrick.rootfs.overlay import OverlayRootfs
from tests.support.wait import wait_for

DISK_MIB = 10240
POOL_SIZE = 4
ID_SHIFT = 1_000_000


async def measure(image: Path, root: Path, count: int, figures: Figures) -> None:
    driver = OverlayRootfs(root=root, instance="bench", pool_size=POOL_SIZE, disk_mib=DISK_MIB)
    await driver.recover(frozenset())
    await driver.open()
    made: list[MachineId] = []

    async def clone(name: str, *, disk_mib: int = DISK_MIB, id_shift: int = 0) -> None:
        machine_id = new_machine_id()
        with figures.timed(name):
            await driver.prepare(machine_id, image, disk_mib=disk_mib, id_shift=id_shift)
        made.append(machine_id)

    try:
        await clone("first of an image (mounts it)")
        for _ in range(count):
            await wait_for(lambda: len(list((root / "pool").iterdir())) == POOL_SIZE)
            await clone("prepare, upper from the pool")
        for _ in range(count):
            await wait_for(lambda: len(list((root / "pool").iterdir())) == POOL_SIZE)
            await clone("prepare, ids shifted", id_shift=ID_SHIFT)
        for _ in range(count):
            await clone("prepare, no pool for its size", disk_mib=DISK_MIB // 2)
        with figures.timed("20 at once, all of them"):
            async with asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(clone("prepare, one of 20 at once"))
        used = sorted([await driver.usage_bytes(machine_id) for machine_id in made])
        figures.notes.append(f"Host disk of an idle clone: {used[len(used) // 2] // 1024} KiB.")
        await driver.remove(made.pop())
    finally:
        for machine_id in made:
            with figures.timed("remove"):
                await driver.remove(machine_id)
        await driver.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("mounts need root")
    figures = Figures(f"clone ({machine()})")
    with tempfile.TemporaryDirectory(prefix="firebrick-bench-", dir="/var/tmp") as directory:
        asyncio.run(measure(options.image, Path(directory) / "disks", options.count, figures))
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
