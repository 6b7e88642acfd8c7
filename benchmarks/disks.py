"""A new disk for a machine by each way of cloning, beside the bare tool that does the same, in turns of one run.

python -m benchmarks.disks DIRECTORY     (as root; on XFS or btrfs for reflink; devmapper where the kernel has it)
"""

import argparse
import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import Figures, machine
from firebrick.linux import device_mapper
from firebrick.model.ids import new_machine_id
from firebrick.rootfs.disks import CloneKind, Disks, FileDisks, can_reflink
from firebrick.rootfs.overlay import OverlayRootfs
from firebrick.rootfs.thin_disks import ThinDisks
from tests.support.wait import wait_for

DISK_MIB = 10240
INSTANCE = "bench"
POOL = f"firebrick-{INSTANCE}-pool"
POOL_SIZE = 2
BARE_NUMBER = 5_000_000


def cpu_s() -> float:
    """Of this process and the tools that it ran."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def run(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)


def bare_copy(root: Path, how: str) -> Callable[[int], None]:
    return lambda n: run("cp", how, root / "seeds" / f"{DISK_MIB}.img", root / f"bare-{n}.img")


def bare_snapshot(root: Path) -> Callable[[int], None]:
    seed = (root / "thin" / "seeds" / f"{DISK_MIB}.img").readlink().name

    def snapshot(n: int) -> None:
        number, pool = BARE_NUMBER + n, device_mapper.find(POOL)
        assert pool is not None
        run("dmsetup", "message", POOL, 0, f"create_snap {number} {seed}")
        table = f"0 {DISK_MIB << 11} thin {pool.major_minor} {number}"
        run("dmsetup", "create", f"bare-{number}", "--table", table)

    return snapshot


def remove_snapshot(n: int) -> None:
    run("dmsetup", "remove", f"bare-{BARE_NUMBER + n}")
    run("dmsetup", "message", POOL, 0, f"delete {BARE_NUMBER + n}")


def measure(kind: CloneKind, root: Path, count: int, figures: Figures) -> None:
    thin = kind is CloneKind.DEVMAPPER
    disks: Disks = (
        ThinDisks(root / "thin", instance=INSTANCE) if thin else FileDisks(root / "seeds", kind=kind)
    )  # fmt: skip
    (root / "images").mkdir(parents=True)
    disks.open([])
    images = [root / "images" / str(n) for n in range(-1, count)]
    for image in images:
        image.mkdir()
    disks.make(images[0] / "disk.img", disk_mib=DISK_MIB)
    bare = bare_snapshot(root) if thin else bare_copy(
        root, "--reflink=always" if kind is CloneKind.REFLINK else "--sparse=always"
    )  # fmt: skip
    spent: dict[str, list[float]] = {"ours": [], "bare": []}
    cpu = dict.fromkeys(spent, 0.0)
    for n, image in enumerate(images[1:]):
        for who in ("ours", "bare"):
            before_s, before_cpu_s = time.perf_counter(), cpu_s()
            with figures.timed(f"{kind}: {who}"):
                disks.make(image / "disk.img", disk_mib=DISK_MIB) if who == "ours" else bare(n)
            spent[who].append(time.perf_counter() - before_s)
            cpu[who] += cpu_s() - before_cpu_s
    ours, tool = (statistics.median(spent[who]) for who in ("ours", "bare"))
    figures.notes.append(
        f"{kind}: ours / bare tool, medians: {ours / tool:.2f}; processor time of a clone: "
        f"{cpu['ours'] / count * 1000:.1f} / {cpu['bare'] / count * 1000:.1f} ms."
    )
    for n, image in enumerate(images):
        disks.remove(image / "disk.img")
        if thin and n < count:
            remove_snapshot(n)
    assert disks.close()
    shutil.rmtree(root / "images")
    asyncio.run(measure_ahead(kind, root, disks, count, figures))


async def measure_ahead(kind: CloneKind, root: Path, disks: Disks, count: int, figures: Figures) -> None:
    """As a machine with a kernel of its own takes one: from those that are made ahead."""
    driver = OverlayRootfs(root=root, instance=INSTANCE, disks=disks, pool_size=POOL_SIZE, disk_mib=DISK_MIB)
    await driver.recover(frozenset())
    await driver.open()
    name, spent_s = f"{kind}: made ahead", []
    for n in range(-1, count):
        machine_id = new_machine_id()
        before_s = time.process_time()
        with figures.timed(name if n >= 0 else f"{kind}: the first machine's"):
            await driver.prepare(machine_id, root, disk_mib=DISK_MIB, is_mounted=False)
        spent_s.append(time.process_time() - before_s)
        await driver.remove(machine_id)
        await wait_for(lambda: len(list((root / "pool").glob("file-*"))) == POOL_SIZE)
    await driver.close()
    figures.notes.append(
        f"{name}: least {min(figures.rows[name]):.1f} ms, processor time {statistics.median(spent_s) * 1000:.1f} ms."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("block devices need root")
    kinds = [CloneKind.SPARSE]
    if can_reflink(options.directory):
        kinds.append(CloneKind.REFLINK)
    if device_mapper.CONTROL.exists():
        kinds.append(CloneKind.DEVMAPPER)
    figures = Figures(f"disks ({machine()})")
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="firebrick-bench-", dir=options.directory) as place:
            measure(kind, Path(place) / "rootfs", options.count, figures)
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
