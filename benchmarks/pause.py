"""Rest and come back, on a real node: pause, resume, snapshot, start from one, fork, and what a frozen one costs.

python -m benchmarks.pause RUNTIME TOOLS TEMPLATES [--count N] [--frozen N]     (as root)

RUNTIME is gvisor or container; TOOLS and TEMPLATES are those directories of an instance. Each sandbox has written
`--written` MiB and runs one process that holds 8 MiB.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import Figures, machine
from firebrick.builder.template_store import list_builds
from firebrick.model.ids import new_sandbox_id, new_snapshot_id
from firebrick.model.machine import Limits
from firebrick.rpc.node_api import NodeSandbox, PauseSandbox, StartSandbox
from tests.real.node.harness import NodeUnderTest, node_under_test, request, run_in
from tests.support.instance import free_prefix
from tests.support.wait import wait_for

RECLAIM_AFTER_S = 60.0
"""As `NodeSettings.reclaim_after_s` has it by default."""
LIMITS = Limits(millicpu=2000, memory_mib=1024, disk_mib=10240, process_count=4096)


class Bench:
    def __init__(self, node: NodeUnderTest, template: StartSandbox, written_mib: int) -> None:
        self.node = node
        self.client = node.client
        self._template = template
        self._written_mib = written_mib

    def wanted(self, **changes: object) -> StartSandbox:
        return replace(self._template, sandbox_id=new_sandbox_id(), **changes)

    async def begun(self) -> tuple[StartSandbox, NodeSandbox]:
        wanted = self.wanted()
        started = await self.client.start_sandbox(wanted)
        write = f"head -c {self._written_mib}M /dev/urandom > /home/user/data"
        hold = "python3 -c 'import time; held = bytearray(8 << 20); time.sleep(1e6)' >/dev/null 2>&1 &"
        output, code = await run_in(started, f"{write}; {hold}")
        assert code == 0, output
        return wanted, started

    def pause(self, wanted: StartSandbox, *, keep_memory: bool) -> PauseSandbox:
        return PauseSandbox(sandbox_id=wanted.sandbox_id, keep_memory=keep_memory)

    async def cycles(self, count: int, figures: Figures) -> None:
        wanted, started = await self.begun()
        for _ in range(count):
            with figures.timed("pause with memory"):
                await self.client.pause_sandbox(self.pause(wanted, keep_memory=True))
            with figures.timed("resume with memory"):
                started = await self.client.resume_sandbox(wanted)
            with figures.timed("first command after it"):
                await run_in(started, "true")
        for _ in range(count):
            with figures.timed("pause, disk only"):
                await self.client.pause_sandbox(self.pause(wanted, keep_memory=False))
            with figures.timed("resume, disk only"):
                await self.client.resume_sandbox(wanted)
        await self.client.kill_sandbox(wanted.sandbox_id)

    async def snapshots(self, count: int, figures: Figures) -> None:
        wanted, _ = await self.begun()
        for _ in range(count):
            snapshot_id = new_snapshot_id()
            with figures.timed("snapshot of a running one"):
                await self.client.snapshot_sandbox(wanted.sandbox_id, snapshot_id, keep_memory=False)
            one = self.wanted(snapshot_id=snapshot_id)
            with figures.timed("start from a snapshot"):
                await self.client.start_sandbox(one)
            await self.client.kill_sandbox(one.sandbox_id)
            many = [self.wanted(snapshot_id=snapshot_id) for _ in range(10)]
            with figures.timed("fork into ten at once"):
                async with asyncio.TaskGroup() as group:
                    for fork in many:
                        group.create_task(self.client.start_sandbox(fork))
            for fork in many:
                await self.client.kill_sandbox(fork.sandbox_id)
            await self.client.delete_snapshot(snapshot_id)
        await self.client.kill_sandbox(wanted.sandbox_id)

    async def density(self, count: int, figures: Figures) -> None:
        """Freeze `count`, let the kernel take back what it may, and look at the whole computer's memory."""
        warm_up, _ = await self.begun()
        assert self.node.process is not None
        pid = self.node.process.pid
        before = memory_mib(pid, self.node.data_dir)
        gate, begun = asyncio.Semaphore(BEGUN_AT_ONCE), []

        async def one() -> None:
            async with gate:
                wanted, _ = await self.begun()
                await self.client.pause_sandbox(self.pause(wanted, keep_memory=True))
                begun.append(wanted)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())
        frozen = memory_mib(pid, self.node.data_dir)
        await asyncio.sleep(RECLAIM_AFTER_S + 10)
        reclaimed = memory_mib(pid, self.node.data_dir)
        began = time.perf_counter()
        for wanted in begun:
            await self.client.resume_sandbox(wanted)
        each_ms = (time.perf_counter() - began) * 1000 / count
        cost_mib = (before["MemAvailable"] - frozen["MemAvailable"]) / count
        least_mib = (before["MemAvailable"] - reclaimed["MemAvailable"]) / count
        where = ", ".join(
            f"{name} {(frozen[name] - before[name]) / count:.2f} → {(reclaimed[name] - before[name]) / count:.2f}"
            for name in PARTS
        )
        figures.notes.append(
            f"{count} frozen at once cost {cost_mib:.1f} MiB of memory each (MemAvailable before and after), and after "
            f"their memory was given back {least_mib:.1f}; {int(before['MemTotal'] * 0.9 / cost_mib)} would fit into "
            f"90 % of this computer's {before['MemTotal'] / 1024:.0f} GiB. Of each, MiB: {where}. All resumed one "
            f"after the other: {each_ms:.0f} ms each."
        )
        print(figures.notes[-1], flush=True)

        async def end(wanted: StartSandbox) -> None:
            async with gate:
                await self.client.kill_sandbox(wanted.sandbox_id)

        async with asyncio.TaskGroup() as group:
            for wanted in [*begun, warm_up]:
                group.create_task(end(wanted))


BEGUN_AT_ONCE = 8
PARTS = (
    "charged",
    "AnonPages",
    "Cached",
    "SReclaimable",
    "SUnreclaim",
    "PageTables",
    "KernelStack",
    "Percpu",
    "node agent",
)


def memory_mib(node_pid: int, data_dir: Path) -> dict[str, float]:
    """/proc/meminfo, what the node agent has in memory, and what the machines' groups are charged for (v1)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    found = {name: int(value.split()[0]) / 1024 for name, value in fields.items()}
    own = dict(line.split(":", 1) for line in Path(f"/proc/{node_pid}/status").read_text().splitlines())
    names = {path.name for path in (data_dir / "node" / "machines").iterdir()}
    groups = [path for path in Path("/sys/fs/cgroup/memory").glob("firebrick-*/*/") if path.name in names]
    charged = sum(int((group / "memory.usage_in_bytes").read_text()) for group in groups) / 2**20
    return found | {"node agent": int(own["VmRSS"].split()[0]) / 1024, "charged": charged}


async def main(arguments: argparse.Namespace) -> None:
    figures = Figures(f"Rest on {arguments.runtime}, each with {arguments.written} MiB written")
    directory = Path(tempfile.mkdtemp(prefix="firebrick-pause-", dir="/var/tmp"))
    directory.chmod(0o711)
    (directory / "tools").symlink_to(arguments.tools)
    (directory / "templates").symlink_to(arguments.templates)
    slot_count = max(24, arguments.frozen + 8)
    settings = {
        "runtime": arguments.runtime,
        "network_prefix": free_prefix(),
        "slot_count": slot_count,
        "warm_count": arguments.warm,
    }
    build = list_builds(arguments.templates)[0]
    try:
        async with node_under_test(directory, **settings) as node:
            bench = Bench(node, replace(request(limits=LIMITS), build_id=build.build_id), arguments.written)

            async def slots_made() -> bool:
                return (await node.client.describe()).free_slot_count >= slot_count - 1

            await wait_for(slots_made, timeout_s=300)
            if arguments.count:
                await bench.cycles(arguments.count, figures)
                await bench.snapshots(arguments.count, figures)
            if arguments.frozen:
                await bench.density(arguments.frozen, figures)
    finally:
        shutil.rmtree(directory)
    figures.notes.append(machine())
    figures.show()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runtime")
    parser.add_argument("tools", type=Path)
    parser.add_argument("templates", type=Path)
    parser.add_argument("--count", type=int, default=10, help="0: only --frozen")
    parser.add_argument("--frozen", type=int, default=0)
    parser.add_argument("--warm", type=int, default=0, help="warm machines, which starts from snapshots may take")
    parser.add_argument("--written", type=int, default=8)
    asyncio.run(main(parser.parse_args()))
