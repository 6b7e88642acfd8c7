"""MicroVMs that go on from saved memory: ours beside Firecracker alone, driven by the few lines that it takes.

python -m benchmarks.restore [--count N]     (as root, where tests of microVMs run: `./dev lab run`)
python -m benchmarks.restore --monitors      (wherever /dev/kvm opens: until the monitor has loaded the save; no guest)

Alone means: a process in the slot's network namespace and in a root directory filled before, without jailer, cgroup,
mounts, own user or records, and one request of its API. Both go on from the same save, on a disk that was copied
before, behind a tap; the clock starts before the process and stops at the first answer of the guest's server, or with
`--monitors` when its processors run.
"""

import argparse
import asyncio
import os
import resource
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figures, machine
from benchmarks.freed import packed_bytes
from firebrick.linux.netns import call_inside, in_own_thread
from firebrick.linux.tap import put_tap_before
from firebrick.runtimes.base import MachineSpec
from firebrick.runtimes.firecracker.api import ApiFailed, MachineApi
from firebrick.runtimes.firecracker.plan import TAP
from tests.support.firecracker import monitor_tools
from tests.support.instance import CACHE
from tests.support.leaks import LeakCheck
from tests.support.runtime_bench import RuntimeBench, runtime_bench
from tests.support.wait import wait_for

AT_ONCE = 10
PLAIN, OURS = "Firecracker alone: process → going on", "ours: start → going on"
START = "of which start"

Answer = Callable[[RuntimeBench, MachineSpec], Awaitable[None]]
"""Returns when a machine that was told to go on has done so."""
ONE = "ours, one"
PLAIN_TEN, TEN = f"alone, {AT_ONCE} at once: all of them go on", f"ours, {AT_ONCE} at once: all of them go on"


@dataclass(slots=True)
class Alone:
    """Firecracker in a directory of its own; what it is given is ready before the clock starts."""

    bench: RuntimeBench
    spec: MachineSpec
    root: Path
    process: "subprocess.Popen[bytes] | None" = None

    async def fill(self, save: Path) -> None:
        disk_file, image = self.spec.disk_file, self.spec.image
        assert disk_file is not None
        assert image is not None
        self.root.mkdir()
        files = {"memory": save / "memory", "state": save / "state", "agent": save / "agent", "image": image,
                 "disk": disk_file, "firecracker": CACHE / "tools" / "firecracker" / "firecracker"}  # fmt: skip
        for name, source in files.items():
            (self.root / name).touch()
            await asyncio.to_thread(subprocess.run, ["mount", "--bind", source, self.root / name], check=True)
        for name in ("spec", "report"):
            (self.root / name).write_bytes(bytes(512))
        (self.root / "dev" / "net").mkdir(parents=True)
        for device, numbers in (("kvm", (10, 232)), ("net/tun", (10, 200)), ("urandom", (1, 9))):
            os.mknod(self.root / "dev" / device, 0o20666, os.makedev(*numbers))
        await in_own_thread(lambda: call_inside(self.spec.netns, lambda: put_tap_before("eth0", TAP, user_id=0)))

    async def start(self) -> None:
        argv = [f"--net={self.spec.netns}", "chroot", self.root, "/firecracker", "--api-sock", "/api.sock"]
        self.process = await asyncio.to_thread(
            subprocess.Popen, ["nsenter", *argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        api = MachineApi(self.root / "api.sock", timeout_s=120)
        while True:
            try:
                await api.state()
                break
            except ApiFailed:
                await asyncio.sleep(0.001)
        await api.load(memory="/memory", state="/state", resumes=True, tracks=False)

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
        for path in self.root.iterdir():
            if path.is_file():
                subprocess.run(["umount", path], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.root)


@asynccontextmanager
async def alone(bench: RuntimeBench, save: Path) -> AsyncIterator[Alone]:
    spec = await bench.spec(kept_disk=save.with_suffix(".disk"))
    made = Alone(bench, spec, bench.directory / f"alone-{spec.machine_id}")
    try:
        await made.fill(save)
        yield made
    finally:
        made.end()


async def guest_answers(bench: RuntimeBench, spec: MachineSpec) -> None:
    await wait_for(lambda: bench.answers(spec))


async def monitor_answers(bench: RuntimeBench, spec: MachineSpec) -> None:
    """Its answer to the load was all that there is to wait for."""


async def begun(bench: RuntimeBench) -> MachineSpec:
    """A machine whose guest need not come up: its kernel has had a moment to touch its memory."""
    spec = await bench.spec()
    await bench.runtime.start(spec)
    await asyncio.sleep(0.3)
    return spec


async def measure_one(bench: RuntimeBench, save: Path, answer: Answer, figures: Figures, count: int) -> None:
    """Ours and alone in turn, so that what else the machine does falls on both."""
    cpu_ms = []
    for _ in range(count + 1):
        async with alone(bench, save) as other:
            with figures.timed(PLAIN):
                await other.start()
                await answer(bench, other.spec)
        spec = await bench.spec(kept_disk=save.with_suffix(".disk"), memory=save)
        with figures.timed(OURS):
            before, children = time.process_time(), _children_s()
            with figures.timed(START):
                await bench.runtime.start(spec)
            cpu_ms.append(((time.process_time() - before) * 1000, (_children_s() - children) * 1000))
            await answer(bench, spec)
        await bench.runtime.destroy(spec.machine_id)
    for name in (PLAIN, OURS, START):
        del figures.rows[name][0]
    figures.against[OURS] = PLAIN
    own, jailer = (sorted(column)[len(cpu_ms) // 2] for column in zip(*cpu_ms, strict=True))
    figures.notes.append(f"Processor time of a start: {own:.1f} ms of ours, {jailer:.1f} ms of shell and jailer.")
    least = {name: min(figures.rows[name]) for name in (PLAIN, OURS)}
    figures.notes.append(
        f"The least of each, which other work disturbed least: alone {least[PLAIN]:.1f} ms, ours {least[OURS]:.1f} ms "
        f"({least[OURS] / least[PLAIN]:.2f})."
    )


async def measure_ten(bench: RuntimeBench, save: Path, answer: Answer, figures: Figures, count: int) -> None:
    async def one(spec: MachineSpec) -> None:
        await bench.runtime.start(spec)
        await answer(bench, spec)

    async def one_alone(other: Alone) -> None:
        await other.start()
        await answer(bench, other.spec)

    for round_number in range(count):
        spec = await bench.spec(kept_disk=save.with_suffix(".disk"), memory=save)
        with figures.timed(ONE):
            await one(spec)
        await bench.runtime.destroy(spec.machine_id)
        async with AsyncExitStack() as stack:
            others = [await stack.enter_async_context(alone(bench, save)) for _ in range(AT_ONCE)]
            with figures.timed(PLAIN_TEN):
                async with asyncio.TaskGroup() as group:
                    for other in others:
                        group.create_task(one_alone(other))
        specs = [await bench.spec(kept_disk=save.with_suffix(".disk"), memory=save) for _ in range(AT_ONCE)]
        with figures.timed(TEN):
            async with asyncio.TaskGroup() as group:
                for spec in specs:
                    group.create_task(one(spec))
        if round_number == 0:
            await tell_memory(bench, specs, figures)
        for spec in specs:
            await bench.runtime.destroy(spec.machine_id)
    figures.against[TEN] = PLAIN_TEN


async def tell_memory(bench: RuntimeBench, specs: list[MachineSpec], figures: Figures) -> None:
    """What the last of them costs: the sum of all without it, taken from the sum of all. Each has answered once."""
    everyone = await _pss_mib(bench, specs)
    last = specs.pop()
    await bench.runtime.destroy(last.machine_id)
    others = await _pss_mib(bench, specs)
    while len(specs) > 1:
        await bench.runtime.destroy(specs.pop().machine_id)
    first = await _pss_mib(bench, specs)
    figures.notes.append(
        f"Memory (PSS of monitors): the first alone {first:.1f} MiB; the tenth added {everyone - others:.1f} MiB "
        f"(ratio {(everyone - others) / first:.2f}); all ten {everyone:.1f} MiB."
    )


async def _pss_mib(bench: RuntimeBench, specs: list[MachineSpec]) -> float:
    found = 0
    for spec in specs:
        status = await bench.runtime.inspect(spec.machine_id)
        for line in Path(f"/proc/{status.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                found += int(line.split()[1])
    return found / 1024


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tell_size(save: Path, figures: Figures) -> None:
    memory = save / "memory"
    packed = packed_bytes(memory)
    found = memory.stat()
    figures.notes.append(
        f"A save: memory of {found.st_size >> 20} MiB takes {found.st_blocks * 512 / (1 << 20):.1f} MiB on the disk "
        f"and {packed / (1 << 20):.1f} MiB by zstd; the state {(save / 'state').stat().st_size >> 10} KiB."
    )


async def measure(count: int, figures: Figures, *, monitors_only: bool) -> None:
    if monitors_only:
        await monitor_tools()
    async with runtime_bench("monitor" if monitors_only else "firecracker", LeakCheck()) as bench:
        source = await (begun(bench) if monitors_only else bench.serving())
        with figures.timed("save: freeze, write, take out, copy the disk"):
            save = await bench.saved(source)
        await bench.runtime.destroy(source.machine_id)
        tell_size(save, figures)
        answer = monitor_answers if monitors_only else guest_answers
        await measure_one(bench, save, answer, figures, count)
        await measure_ten(bench, save, answer, figures, max(1, count // 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=9)
    parser.add_argument("--monitors", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("microVMs need root")
    figures = Figures(f"restore ({machine()})")
    asyncio.run(measure(options.count, figures, monitors_only=options.monitors))
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
