"""Processor time that a node spends on the life of a microVM: the node agent's own, and that of what it starts.

python -m benchmarks.overhead [--count N]     (as root, wherever /dev/kvm opens; whether guests boot is not asked)

Node agent, network slots, disks, jailer, monitor and its API are the real ones, and the calls come by gRPC; the guest
agent is simulated, because where KVM boots no guest nobody would answer. Counted is this process, in which both ends of
the calls are, and the processes that it has waited for: shell and jailer. A monitor's first thread is told beside it,
and its processors' threads are the guest's.
"""

import argparse
import asyncio
import os
import resource
import statistics
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.figures import Figures, machine
from firebrick import log
from firebrick.config import Config
from firebrick.guestlink.sim import SimGuests
from firebrick.main.node_drivers import build_drivers
from firebrick.model.ids import new_sandbox_id, new_snapshot_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.node.drivers import NodeDrivers, NodeSettings
from firebrick.node.identity import load_node_id
from firebrick.node.records import MachineRecords
from firebrick.node.service import NodeServer
from firebrick.node.supervisor import NodeAgent
from firebrick.rpc.node_api import StartSandbox
from firebrick.rpc.node_client import GrpcNodeClient
from tests.real.node.harness import request, write_small_image
from tests.support.firecracker import monitor_tools
from tests.support.instance import free_prefix
from tests.support.wait import SLOWNESS, wait_for

SLOTS, DISKS_AHEAD = 8, 4
CREATE, RESTORE, KILL = "create → answer", "create from memory → answer", "kill → answer"
AHEAD, ANEW = "a disk made ahead for the next", "slot and disk cleaned and made anew"


@dataclass(slots=True)
class Spent:
    """Processor time in ms: of this process, of ended children, of the monitor's first thread."""

    own: list[float]
    children: list[float]
    monitor: list[float]


class Meter:
    """Rows of processor time, beside those of time on the clock."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self.rows: dict[str, Spent] = {}

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        own, children = cpu_ms(resource.RUSAGE_SELF), cpu_ms(resource.RUSAGE_CHILDREN)
        with self._figures.timed(name):
            yield
        row = self.rows.setdefault(name, Spent(own=[], children=[], monitor=[]))
        row.own.append(cpu_ms(resource.RUSAGE_SELF) - own)
        row.children.append(cpu_ms(resource.RUSAGE_CHILDREN) - children)

    def total(self, name: str) -> float:
        row = self.rows[name]
        return statistics.median(own + child for own, child in zip(row.own, row.children, strict=True))

    def tell(self) -> None:
        lines = ["| processor time, ms (medians) | own | shell and jailer | both | monitor's first thread |",
                 "|---|--:|--:|--:|--:|"]  # fmt: skip
        for name, row in self.rows.items():
            monitor = f"{statistics.median(row.monitor):.1f}" if row.monitor else ""
            own, children = statistics.median(row.own), statistics.median(row.children)
            lines.append(f"| {name} | {own:.1f} | {children:.1f} | {self.total(name):.1f} | {monitor} |")
        self._figures.notes.append("\n".join(lines))
        for first in (CREATE, RESTORE):
            life = [self.total(part) for part in (first, AHEAD, KILL, ANEW)]
            self._figures.notes.append(
                f"{first}: {life[0]:.1f} ms, with the disk for the next {sum(life[:2]):.1f} ms; with its end and all "
                f"that is made anew for the next {sum(life):.1f} ms."
            )


def cpu_ms(whose: int) -> float:
    used = resource.getrusage(whose)
    return (used.ru_utime + used.ru_stime) * 1000


def thread_ms(pid: int) -> float:
    """Of a process's first thread, since it was forked."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e6


@dataclass(slots=True)
class Node:
    client: GrpcNodeClient
    drivers: NodeDrivers
    guests: SimGuests
    records: MachineRecords
    limits: Limits
    node_dir: Path

    def wanted(self, **changes: object) -> StartSandbox:
        return replace(request(), sandbox_id=new_sandbox_id(), limits=self.limits, **changes)  # type: ignore[arg-type]

    async def full(self, running: int) -> None:
        """Return when all that is made ahead is there."""
        pool = self.node_dir / "rootfs" / "pool"

        def is_full() -> bool:
            slots = self.drivers.slots.free_count == SLOTS - running
            # Disks are made ahead from the first machine on.
            return slots and len(list(pool.glob("file-*"))) in (0, DISKS_AHEAD)

        await wait_for(is_full, timeout_s=60)

    async def monitor_ms(self, wanted: StartSandbox) -> float:
        found = next(s for s in await self.client.list_sandboxes() if s.sandbox_id == wanted.sandbox_id)
        status = await self.drivers.runtimes[RuntimeName.FIRECRACKER].inspect(found.machine_id)
        assert status.pid is not None
        return thread_ms(status.pid)

    async def snapshot(self) -> StartSandbox:
        """A request that goes on from the memory of a sandbox that is gone; it has been stored."""
        first, snapshot_id = self.wanted(), new_snapshot_id()
        await self.client.start_sandbox(first)
        token = next(r.control_token for r in self.records.load_all().readable if r.sandbox_id == first.sandbox_id)
        made = await self.client.snapshot_sandbox(first.sandbox_id, snapshot_id, keep_memory=True)
        assert made.keeps_memory
        self.guests.guests[token].is_held = True
        self.guests.load(self.guests.dump({"token": token}))

        async def is_stored() -> bool:
            return all(found.stored_bytes is not None for found in await self.client.list_snapshots())

        await wait_for(is_stored, timeout_s=120)
        await self.client.kill_sandbox(first.sandbox_id)
        return replace(self.wanted(), snapshot_id=snapshot_id, limits=self.limits)


@asynccontextmanager
async def node(directory: Path) -> AsyncIterator[Node]:
    tools = await monitor_tools()
    (directory / "templates").mkdir()
    (directory / "agent").mkdir()
    (directory / "tools").mkdir()
    (directory / "tools" / "firecracker").symlink_to(tools.directory)
    write_small_image(directory / "templates")
    config = Config(data_dir=directory, network_prefix=free_prefix(), slot_count=SLOTS, patience=float(SLOWNESS))
    guests, limits = SimGuests(), Limits(millicpu=2000, memory_mib=256, disk_mib=10240, process_count=256)
    built = build_drivers(config)
    agent = replace(built.agent, directory=directory / "agent", version=lambda: "")
    drivers = replace(built, links=guests.link, agent=agent, memory_kills=None)
    config.node_dir.mkdir(mode=0o711)
    config.run_dir.mkdir()
    settings = NodeSettings(
        node_id=load_node_id(config.node_dir), node_dir=config.node_dir, offered=(RuntimeName.FIRECRACKER,),
        dns_servers=("8.8.8.8",), start_concurrency=4, cpu_overcommit=100.0, memory_overcommit=100.0, warm_count=0,
        warm_memory_mib=0, patience=config.patience, template_memory_count=0,
    )  # fmt: skip
    records = MachineRecords(settings.machines_dir)
    served = NodeAgent(drivers, settings, records)
    server = NodeServer(served, config.node_socket)
    client = GrpcNodeClient(f"unix:{config.node_socket}", patience=config.patience)
    try:
        await served.open()
        await server.start()
        yield Node(client, drivers, guests, records, limits, config.node_dir)
    finally:
        await client.close()
        await served.close()
        await server.stop()
        await drivers.slots.destroy_all()


async def life(at: Node, wanted: StartSandbox, name: str, meter: Meter) -> None:
    with meter.measured(name):
        await at.client.start_sandbox(wanted)
    meter.rows[name].monitor.append(await at.monitor_ms(wanted))
    with meter.measured(AHEAD):
        await at.full(running=1)
    with meter.measured(KILL):
        await at.client.kill_sandbox(wanted.sandbox_id)
    with meter.measured(ANEW):
        await at.full(running=0)


async def measure(count: int, figures: Figures) -> None:
    with tempfile.TemporaryDirectory(prefix="firebrick-bench-", dir="/var/tmp") as place:
        directory = Path(place)
        directory.chmod(0o711)
        async with node(directory) as at:
            await at.full(running=0)
            # The first reads the tools.
            await life(at, at.wanted(), CREATE, Meter(Figures("unmeasured")))
            restored = await at.snapshot()
            await at.full(running=0)
            meter = Meter(figures)
            for _ in range(count):
                await life(at, at.wanted(), CREATE, meter)
                await life(at, replace(restored, sandbox_id=new_sandbox_id()), RESTORE, meter)
            meter.tell()
            await at.client.delete_snapshot(restored.snapshot_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("microVMs need root")
    log.configure("warning", "bench")
    os.umask(0o022)
    figures = Figures(f"overhead of the node ({machine()})")
    asyncio.run(measure(options.count, figures))
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
