"""A simulated host that outlives node agents: build one over it, kill it at any step, build the next.

`Steps` stands between an agent and the host. Every effect passes it twice, before and after; at a chosen
passage it lets the call fail, or cuts the agent off for good: from then on nothing that the dying agent still
does reaches the host, which is what kill -9 means.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from firebrick.clock import SystemClock
from firebrick.guestlink.sim import SimGuest, SimGuests
from firebrick.linux.kernel_log import KernelLog
from firebrick.model.errors import NotFound
from firebrick.model.ids import BuildId, MachineId, NodeId, SandboxId, TemplateId, is_machine_id, new_sandbox_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.network.sim import SimSlotPool
from firebrick.node.drivers import AgentImage, NodeDrivers, NodeSettings, WarmKey
from firebrick.node.records import MachineRecord, MachineRecords
from firebrick.node.supervisor import NodeAgent
from firebrick.rootfs.sim import SimRootfs
from firebrick.rpc.node_api import NodeSandbox, NodeSandboxState, StartSandbox
from firebrick.runtimes.base import Capability, RuntimeFailed
from firebrick.runtimes.sim.runtime import SimRuntime
from tests.support.wait import wait_for

BASE = BuildId("base-build")
LIMITS = Limits(millicpu=1000, memory_mib=512, disk_mib=1024, process_count=100)
WARM_KEY = WarmKey(build_id=BASE, runtime=RuntimeName.SIM, limits=LIMITS)
EFFECTS = frozenset(
    {"start", "destroy", "prepare", "remove", "acquire", "release", "write", "wait_ready", "init"}
    | {"freeze", "thaw", "flush", "keep", "capture", "export_disk", "import_disk"}
    | {"hold", "renew", "save_memory"}
)


class Crashed(BaseException):
    """The agent is dead. No Exception: nothing in it may handle this."""


class FastClock(SystemClock):
    """Time that runs fifty times faster, so that retries and pauses cost a test little."""

    SPEED = 50.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() * self.SPEED

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / self.SPEED)


@dataclass(slots=True)
class Steps:
    """Counts passages of effects. `crash_at` and `fail_at` name the passage; 0 is never."""

    crash_at: int = 0
    fail_at: int = 0
    passed: list[str] = field(default_factory=list)
    is_dead: bool = False

    def passage(self, name: str) -> None:
        if self.is_dead:
            raise Crashed
        self.passed.append(name)
        if len(self.passed) == self.crash_at:
            self.is_dead = True
            raise Crashed
        if len(self.passed) == self.fail_at and name.startswith("before"):
            raise RuntimeFailed(f"Told to fail {name}.")


class Between:
    """An object of the host as the agent gets it."""

    def __init__(self, target: Any, steps: Steps) -> None:
        self._target = target
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value
        if inspect.iscoroutinefunction(value):
            return self._slow(name, value)
        return self._quick(name, value)

    def _slow(self, name: str, value: Any) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            self._pass("before", name)
            result = await value(*args, **kwargs)
            self._pass("after", name)
            return result

        return call

    def _quick(self, name: str, value: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._pass("before", name)
            result = value(*args, **kwargs)
            self._pass("after", name)
            return result

        return call

    def _pass(self, when: str, name: str) -> None:
        if self._steps.is_dead:
            raise Crashed
        if name in EFFECTS:
            self._steps.passage(f"{when} {name}")


class Images:
    def __init__(self, root: Path) -> None:
        self._image = root / "base.erofs"

    def builds(self) -> frozenset[BuildId]:
        return frozenset({BASE})

    def image(self, build_id: BuildId) -> Path:
        if build_id != BASE:
            raise NotFound(f"No build {build_id} on this node.")
        self._image.touch()
        return self._image


class World:
    """The host: what is there stays there, whichever agent looks at it."""

    def __init__(self, root: Path, *, slot_count: int = 8) -> None:
        self.clock = FastClock()
        self.root = root
        self.guests = SimGuests()
        self.runtime = SimRuntime(self.clock, guests=self.guests)
        self.rootfs = SimRootfs()
        self.slots = SimSlotPool(size=slot_count)
        self.records = MachineRecords(root / "machines")
        self.settings = NodeSettings(
            node_id=NodeId("node-sim"),
            node_dir=root,
            offered=(RuntimeName.SIM,),
            dns_servers=("192.0.2.1",),
            start_concurrency=4,
            cpu_overcommit=8.0,
            memory_overcommit=4.0,
            warm_count=0,
            warm_memory_mib=512,
            template_memory_count=0,
        )
        self.agent_version = "1"
        root.mkdir(parents=True, exist_ok=True)
        self.kernel_log = root / "kmsg"
        """Not there until a test makes it: a FIFO that takes the kernel's lines."""

    def keep_warm(self, count: int) -> None:
        self.settings = replace(self.settings, warm_count=count, always_hot=(WARM_KEY,))

    def build(self, steps: Steps | None = None) -> NodeAgent:
        """A new agent process over this host."""
        steps = steps or Steps()
        return NodeAgent(self.drivers(steps), self.settings, Between(self.records, steps))  # type: ignore[arg-type]

    def drivers(self, steps: Steps | None = None) -> NodeDrivers:
        """This host as an agent sees it."""
        steps = steps or Steps()
        return NodeDrivers(
            runtimes={RuntimeName.SIM: Between(self.runtime, steps)},
            rootfs=Between(self.rootfs, steps),
            slots=Between(self.slots, steps),
            links=lambda address, token, dial=None: Between(self.guests.link(address, token), steps),  # type: ignore[return-value]
            images=Images(self.root),
            agent=AgentImage(
                directory=Path("/sim/agent"),
                argv=("agent",),
                env=lambda token: {"TOKEN": token},
                version=lambda: self.agent_version,
            ),
            clock=self.clock,
            memory_kills=KernelLog(self.kernel_log),
        )

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[NodeAgent]:
        agent = self.build()
        await agent.open()
        try:
            yield agent
        finally:
            await agent.close()

    def machine_ids(self) -> dict[str, set[MachineId]]:
        """Who is there, by each kind of thing that a machine has."""
        stored = self.records.load_all()
        return {
            "runtime": set(self.runtime.machines),
            "rootfs": set(self.rootfs.disks),
            "records": {record.machine_id for record in stored.readable} | set(stored.unreadable),
        }

    def stored(self) -> dict[MachineId, MachineRecord]:
        return {record.machine_id: record for record in self.records.load_all().readable}

    async def assert_owned(self, agent: NodeAgent) -> None:
        """Every thing on the host belongs to a sandbox that the agent lists or to a warm machine of it."""

        async def is_consistent() -> bool:
            sandboxes = await agent.list_sandboxes()
            listed = {sandbox.machine_id for sandbox in sandboxes}
            kept = {s.machine_id for s in sandboxes if s.state is not NodeSandboxState.RUNNING and not s.address}
            warm_count = (await agent.describe()).warm_count
            kinds = self.machine_ids()
            taken = self.taken_slot_count()
            alive = listed - kept <= kinds["runtime"] and len(kinds["runtime"]) == len(listed - kept) + warm_count
            disks = listed if not self.writes_inside else listed - kept
            is_disk_owned = disks <= kinds["rootfs"] and len(kinds["rootfs"]) == len(disks) + warm_count
            is_recorded = listed <= kinds["records"] and len(kinds["records"]) == len(listed) + warm_count
            return alive and is_disk_owned and is_recorded and taken == len(listed - kept) + warm_count

        await wait_for(is_consistent, status=lambda: f"{self.machine_ids()}, slots taken: {self.taken_slot_count()}")
        indexes = [record.slot_index for record in self.stored().values() if record.slot_index is not None]
        assert len(indexes) == len(set(indexes)), "two machines share a slot"

    @property
    def writes_inside(self) -> bool:
        return Capability.WRITES_INSIDE in self.runtime.offered

    def keep_writes_inside(self) -> None:
        """From now on the runtime is one that has what a machine writes to itself."""
        self.runtime.offered |= {Capability.WRITES_INSIDE}

    def keep_memory_in_files(self) -> None:
        """From now on the runtime is one like Firecracker: a kernel of its own, and memory that can be saved."""
        self.runtime.offered |= {Capability.OWN_KERNEL, Capability.KEEPS_MEMORY}

    def guest(self, sandbox: NodeSandbox) -> SimGuest:
        """Who runs inside, now."""
        return self.guests.guests[self.stored()[sandbox.machine_id].control_token]

    def reboot(self) -> None:
        """The host comes back: files are there, machines and slots are not."""
        self.runtime.machines.clear()
        self.slots = SimSlotPool(size=self.slots.size)

    def write_inside(self, sandbox: NodeSandbox, text: str) -> None:
        """What a guest writes to its disk."""
        guest = self.guests.guests[self.stored()[sandbox.machine_id].control_token]
        if self.writes_inside:
            guest.files["file"] = text
        elif Capability.OWN_KERNEL in self.runtime.offered:
            # Its kernel holds it until it is asked.
            guest.on_flush = lambda: self.rootfs.disks.update({sandbox.machine_id: int(text)})
        else:
            self.rootfs.disks[sandbox.machine_id] = int(text)

    def read_inside(self, sandbox: NodeSandbox) -> str:
        if self.writes_inside:
            return self.guests.guests[self.stored()[sandbox.machine_id].control_token].files["file"]
        if Capability.OWN_KERNEL in self.runtime.offered:
            # Inside, what the kernel holds is there.
            self.guests.guests[self.stored()[sandbox.machine_id].control_token].on_flush()
        return str(self.rootfs.disks[sandbox.machine_id])

    def taken_slot_count(self) -> int:
        return self.slots.size - self.slots.free_count

    async def assert_empty(self) -> None:
        await wait_for(
            lambda: not any(self.machine_ids().values()) and self.taken_slot_count() == 0,
            status=lambda: f"{self.machine_ids()}, slots taken: {self.taken_slot_count()}",
        )
        left = [path.name for path in (self.root / "machines").glob("*") if is_machine_id(path.name)]
        assert left == []


def request(sandbox_id: SandboxId | None = None, **changes: Any) -> StartSandbox:
    return StartSandbox(
        sandbox_id=sandbox_id or new_sandbox_id(),
        template_id=TemplateId("base"),
        build_id=BASE,
        limits=LIMITS,
        env={"A": "b"},
        access_token="secret",
        **changes,
    )


async def until_dead(steps: Steps, work: Coroutine[Any, Any, object]) -> bool:
    """Do `work` until it is done or the agent is dead; True when it died, and then nothing of it runs on."""
    task = asyncio.ensure_future(work)
    await wait_for(lambda: task.done() or steps.is_dead, status=lambda: steps.passed)
    if steps.is_dead:
        await end_all_tasks()
    else:
        await task
    return steps.is_dead


async def end_all_tasks() -> None:
    """What a dead process leaves running: nothing."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for other in others:
        other.cancel()
    if others:
        await asyncio.wait(others)
    for other in others:
        # Read, so that a task that died of the crash is not reported as forgotten.
        if not other.cancelled():
            other.exception()
