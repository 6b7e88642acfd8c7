"""Monitors that remember which pages are written: what that costs a guest, and what it spares a save.

python -m benchmarks.tracked [--count N]     (as root, where tests of microVMs run: `./dev lab run`)

Machines of the base template, fresh ones and such as went on from a save, by turns with a monitor that remembers and
one that does not. Each writes to the same 96 MiB five times and is saved.
"""

import argparse
import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import Figures, machine
from benchmarks.freed import Watch
from firebrick.builder.base_template import find_base_template
from firebrick.config import Config
from firebrick.runtimes.firecracker import saves
from firebrick.runtimes.firecracker.api import MachineApi
from tests.support.instance import CACHE
from tests.support.leaks import LeakCheck
from tests.support.runtime_bench import LIMITS, RuntimeBench, runtime_bench
from tests.support.wait import SLOWNESS, wait_for

LARGE = replace(LIMITS, memory_mib=512)
WORK = """python3 -c 'import os
written = bytearray(os.urandom(1 << 20) * 96)
for _ in range(4):
    for at in range(0, len(written), 4096):
        written[at] = 1
'"""
LOAD = MachineApi.load


def remember(tracks: bool) -> None:
    """What drivers made from now on let their monitors do; it is no setting of theirs."""

    async def load(api: MachineApi, *, memory: str, state: str, resumes: bool, tracks: bool) -> None:
        await LOAD(api, memory=memory, state=state, resumes=resumes, tracks=tracks and wanted)

    wanted = tracks
    saves.tracks_from_start = lambda transparent_hugepage: wanted
    MachineApi.load = load  # type: ignore[method-assign]


def written_mib(pid: int) -> int:
    words = Path(f"/proc/{pid}/io").read_text().split()
    return int(words[words.index("wchar:") + 1]) >> 20


async def one(bench: RuntimeBench, image: Path, save: Path | None, name: str, figures: Figures) -> Path:
    kept = save.with_suffix(".disk") if save else None
    spec = replace(await bench.spec(limits=LARGE, kept_disk=kept, memory=save), image=image)
    await bench.runtime.start(spec)
    await wait_for(lambda: bench.answers(spec))
    status = await bench.runtime.inspect(spec.machine_id)
    assert status.pid is not None
    watch = Watch(status.pid)
    if save and "not" in name:
        (bench.directory / "firecracker" / "jails" / "firecracker" / spec.machine_id / "base").unlink()
    before_ms = watch.cpu_ms()
    await bench.run_for(spec, WORK, timeout_s=60 * SLOWNESS)
    figures.rows.setdefault(f"{name}: the work, processor time", []).append(watch.cpu_ms() - before_ms)
    before_ms, own_s, before_mib = watch.cpu_ms(), time.process_time(), written_mib(status.pid)
    made = await bench.saved(spec, f"{spec.machine_id}-save")
    spent_ms = watch.cpu_ms() - before_ms + (time.process_time() - own_s) * 1000
    figures.rows.setdefault(f"{name}: a save, processor time", []).append(spent_ms)
    figures.notes.append(f"{name}: the monitor wrote {written_mib(status.pid) - before_mib} MiB.")
    await bench.runtime.destroy(spec.machine_id)
    return made


async def measure(count: int, figures: Figures) -> None:
    base = find_base_template(Config(data_dir=CACHE))
    assert base is not None
    async with runtime_bench("firecracker", LeakCheck()) as bench:
        bench.restart(start_timeout_s=30 * SLOWNESS)
        save = None
        for kind, rounds in (("fresh", max(1, count // 2)), ("restored", count)):
            for _ in range(rounds):
                for tracks in (False, True):
                    remember(tracks)
                    name = f"{kind}, {'remembers' if tracks else 'does not'}"
                    made = await one(bench, base.image, save if kind == "restored" else None, name, figures)
            save = made
            for part in ("the work", "a save"):
                figures.against[f"{kind}, remembers: {part}, processor time"] = (
                    f"{kind}, does not: {part}, processor time"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("microVMs need root")
    figures = Figures(f"tracked ({machine()})")
    asyncio.run(measure(options.count, figures))
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
