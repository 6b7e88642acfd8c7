"""How large the chunks of a snapshot should be: time and space, on the disk of a real sandbox.

A container writes what an agent's work leaves (libraries, a repository of small files, a database, a log); its disk is
captured, changed as an afternoon would (some files edited, the database and the log written on), and captured again.
Both are saved and loaded at each size. Times are processor time of this process: the fastest of `--rounds`.
    python -m benchmarks.chunks TOOLS TEMPLATES     (as root)

TOOLS and TEMPLATES are those directories of an instance.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.figures import machine
from firebrick.blobs.chunks import ChunkStore
from firebrick.blobs.local import LocalBlobs
from firebrick.builder.template_store import list_builds
from firebrick.clock import SystemClock
from firebrick.linux.loop import copy_file
from firebrick.model.ids import new_snapshot_id
from firebrick.model.machine import Limits
from tests.real.node.harness import node_under_test, request, run_in
from tests.support.instance import free_prefix

SIZES_KIB = (256, 512, 1024, 4096)
LIMITS = Limits(millicpu=2000, memory_mib=1024, disk_mib=10240, process_count=4096)
FIRST = """set -e; cd /home/user
cp -r /usr/lib/python3* .; cp -r /usr/share/perl share
mkdir repository; for i in $(seq 3000); do echo "line $i of a file that nobody reads" > repository/$i.py; done
python3 - <<'EOF'
import sqlite3
con = sqlite3.connect("work.db"); con.execute("create table t (id integer primary key, text)")
con.executemany("insert into t (text) values (?)", ((f"row {n} {n * 7919 % 10007}",) for n in range(400_000)))
con.commit()
EOF
for i in $(seq 200000); do echo "2026-11-24 step $i done"; done > log.txt; sync
"""
LATER = """set -e; cd /home/user
for i in $(seq 1 30 3000); do echo changed >> repository/$i.py; done
python3 - <<'EOF'
import sqlite3
con = sqlite3.connect("work.db"); con.execute("update t set text = 'new' where id % 5000 = 0"); con.commit()
EOF
for i in $(seq 5000); do echo "2026-11-24 later step $i done"; done >> log.txt
head -c 4M /dev/urandom > model.bin; sync
"""


async def captured(directory: Path, arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The disk before and after."""
    (directory / "tools").symlink_to(arguments.tools)
    (directory / "templates").symlink_to(arguments.templates)
    settings: dict[str, Any] = {
        "runtime": "container", "network_prefix": free_prefix(), "slot_count": 8, "warm_count": 0,
    }  # fmt: skip
    build = list_builds(arguments.templates)[0]
    disks = []
    async with node_under_test(directory, **settings) as node:
        wanted = replace(request(limits=LIMITS), build_id=build.build_id)
        started = await node.client.start_sandbox(wanted)
        for number, work in enumerate((FIRST, LATER)):
            output, code = await run_in(started, work)
            assert code == 0, output
            snapshot_id = new_snapshot_id()
            await node.client.snapshot_sandbox(wanted.sandbox_id, snapshot_id, keep_memory=False)
            (made,) = [path for path in directory.rglob("*") if path.is_file() and snapshot_id in str(path)
                       and "blobs" not in path.parts and path.stat().st_size > 1 << 24]  # fmt: skip
            disks.append(directory / f"captured-{number}")
            await asyncio.to_thread(copy_file, made, disks[-1])
            await node.client.delete_snapshot(snapshot_id)
        await node.client.kill_sandbox(wanted.sandbox_id)
    return disks[0], disks[1]


async def cpu_s(work: Awaitable[object]) -> float:
    began = time.process_time()
    await work
    return time.process_time() - began


async def measure(size_kib: int, before: Path, after: Path, directory: Path, rounds: int) -> None:
    times: dict[str, list[float]] = {"save": [], "delta": [], "load": []}
    for _ in range(rounds):
        blobs = directory / "blobs-under-test"
        local = LocalBlobs(blobs)
        await local.open()
        store = ChunkStore(local, SystemClock(), chunk_bytes=size_kib << 10)
        target = directory / "loaded"
        times["save"].append(await cpu_s(store.save("before", {"disk": before}, {})))
        times["delta"].append(await cpu_s(store.save("after", {"disk": after}, {})))
        times["load"].append(await cpu_s(store.load("after", target)))
        shutil.rmtree(target)
        first, second = await store.manifest("before"), await store.manifest("after")
        shutil.rmtree(blobs)
    least = {name: min(values) for name, values in times.items()}
    print(
        f"| {size_kib} | {len(first.chunks)} | {first.stored_bytes / 2**20:.1f} | {least['save']:.2f} |"
        f" {second.stored_bytes / 2**20:.1f} | {least['delta']:.2f} | {least['load']:.2f} |",
        flush=True,
    )


async def main(arguments: argparse.Namespace) -> None:
    directory = Path(tempfile.mkdtemp(prefix="firebrick-chunks-", dir="/var/tmp"))
    directory.chmod(0o711)
    try:
        before, after = await captured(directory, arguments)
        held = before.stat().st_blocks * 512
        print(f"\n## Chunks of a snapshot ({machine()}); a disk with {held / 2**20:.0f} MiB of data\n")
        print("| KiB | chunks | first: MiB stored | CPU s | after the changes: MiB stored | CPU s | load: CPU s |")
        print("|--:|--:|--:|--:|--:|--:|--:|")
        for size_kib in SIZES_KIB:
            await measure(size_kib, before, after, directory, arguments.rounds)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", type=Path)
    parser.add_argument("templates", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    asyncio.run(main(parser.parse_args()))
