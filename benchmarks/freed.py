"""Memory that a guest has freed: what is given back, and what of it is saved.

python -m benchmarks.freed     (as root, where tests of microVMs run: `./dev lab run`)

A machine of the base template takes 256 MiB, frees them and reads files. It is saved as it is, then after it was asked
for what it has freed, then after its kernel was told to drop what it has read, too.
"""

import argparse
import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

import zstandard

from benchmarks.figures import Figures, machine
from firebrick.blobs.chunks import LEVEL
from firebrick.builder.base_template import find_base_template
from firebrick.config import Config
from firebrick.runtimes.base import MachineSpec
from tests.support.instance import CACHE
from tests.support.leaks import LeakCheck
from tests.support.runtime_bench import LIMITS, RuntimeBench, runtime_bench
from tests.support.wait import SLOWNESS

LARGE = replace(LIMITS, memory_mib=1024)
STEPS = {
    "read files": "find /usr/lib /usr/bin -xdev -type f | head -n 600 | xargs -d '\\n' cat | wc -c",
    "take 256 MiB and free them": "python3 -c 'import os; b = os.urandom(1 << 20) * 256'",
}
DROP = "sync; echo 1 > /proc/sys/vm/drop_caches"


class Watch:
    """Processor time and memory of one monitor."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu_ms(self) -> int:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1000 // os.sysconf("SC_CLK_TCK")

    def anonymous_mib(self) -> int:
        words = Path(f"/proc/{self._pid}/status").read_text().split()
        return int(words[words.index("RssAnon:") + 1]) >> 10


def packed_bytes(memory: Path) -> int:
    """What a save's memory takes by zstd, as chunks are packed."""
    packer = zstandard.ZstdCompressor(level=LEVEL).compressobj()
    packed = 0
    with memory.open("rb") as file:
        while chunk := file.read(1 << 20):
            packed += len(packer.compress(chunk))
    return packed + len(packer.flush())


def sizes(memory: Path) -> str:
    on_disk = memory.stat().st_blocks / 2048
    return f"{on_disk:.0f} MiB on the disk, {packed_bytes(memory) / (1 << 20):.0f} MiB by zstd"


async def save(bench: RuntimeBench, spec: MachineSpec, watch: Watch, name: str, figures: Figures) -> None:
    before_ms, own_s = watch.cpu_ms(), time.process_time()
    directory = await bench.saved(spec, name)
    cpu_ms = watch.cpu_ms() - before_ms + (time.process_time() - own_s) * 1000
    figures.notes.append(f"A save {name}: {sizes(directory / 'memory')}; {cpu_ms:.0f} ms of processor time.")
    await bench.runtime.thaw(spec.machine_id)  # type: ignore[attr-defined]


async def give(bench: RuntimeBench, spec: MachineSpec, watch: Watch, figures: Figures) -> None:
    before_ms, before_mib, began = watch.cpu_ms(), watch.anonymous_mib(), time.monotonic()
    await bench.runtime.take_back(spec.machine_id)  # type: ignore[attr-defined]
    figures.notes.append(
        f"Asked for what it freed: {before_mib} → {watch.anonymous_mib()} MiB of the monitor's own; "
        f"{watch.cpu_ms() - before_ms} ms of its processor time, {time.monotonic() - began:.2f} s."
    )


async def measure(figures: Figures) -> None:
    base = find_base_template(Config(data_dir=CACHE))
    assert base is not None
    async with runtime_bench("firecracker", LeakCheck()) as bench:
        bench.restart(start_timeout_s=30 * SLOWNESS)
        spec = replace(await bench.spec(limits=LARGE), image=base.image)
        await bench.runtime.start(spec)
        await bench.ready(spec)
        status = await bench.runtime.inspect(spec.machine_id)
        assert status.pid is not None
        watch = Watch(status.pid)
        figures.notes.append(f"Started: {watch.anonymous_mib()} MiB of the monitor's own.")
        for name, command in STEPS.items():
            with figures.timed(name):
                await bench.run_for(spec, command, timeout_s=60 * SLOWNESS)
        _, said = await bench.run(spec, "grep -E '^(MemFree|Cached|AnonPages):' /proc/meminfo")
        figures.notes.append(f"Inside: {' '.join(said.split())}.")
        await save(bench, spec, watch, "as it is", figures)
        await give(bench, spec, watch, figures)
        await save(bench, spec, watch, "after that", figures)
        await bench.run_for(spec, DROP, timeout_s=60 * SLOWNESS)
        # A driver that asks anew: this one knows that the machine has not grown since.
        bench.restart(start_timeout_s=30 * SLOWNESS)
        await bench.runtime.recover()
        await give(bench, spec, watch, figures)
        await save(bench, spec, watch, "without what it has read", figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("microVMs need root")
    figures = Figures(f"freed ({machine()})")
    asyncio.run(measure(figures))
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
