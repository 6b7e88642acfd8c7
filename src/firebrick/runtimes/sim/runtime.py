"""`Runtime` in memory, with knobs for faults. What a real driver does with processes, this does with a table.

The object is the simulated host: keep it and build a new node agent over it, and that agent finds the machines
that the former one left, as it would find processes after a kill -9.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from firebrick.clock import Clock
from firebrick.model.errors import WrongState
from firebrick.model.ids import MachineId
from firebrick.model.machine import ExitCause, MachineExit, RuntimeName, Usage
from firebrick.runtimes.base import Capability, MachineSpec, MachineStatus, RuntimeFailed

IDLE_MEMORY_BYTES = 20 * 1024 * 1024
MEMORY_NAME = "machine"


class GuestMemory(Protocol):
    """What guests hold, told and taken by whoever simulates them."""

    def dump(self, env: Mapping[str, str]) -> str:
        """Of the guest that was started with this environment."""
        ...

    def load(self, text: str) -> None:
        """A machine goes on from this."""
        ...


@dataclass(slots=True)
class SimMachine:
    """A machine that runs, or ran and was not destroyed yet."""

    spec: MachineSpec
    pid: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    exit: MachineExit | None = None
    is_frozen: bool = False
    reclaim_count: int = 0
    take_back_count: int = 0
    cpu_ns: int = 0
    memory_bytes: int = IDLE_MEMORY_BYTES


class SimRuntime:
    """`fail(method, nth)` makes a later call raise; `delay_s[method]` makes each call take that long. `refusal`: why no
    saved memory can go on here; `version`: of what machines have in it. With `guests` it can be given KEEPS_MEMORY."""

    def __init__(self, clock: Clock, *, guests: GuestMemory | None = None) -> None:
        self._clock = clock
        self._next_pid = 1000
        self._calls: Counter[str] = Counter()
        self._failures: set[tuple[str, int]] = set()
        self.machines: dict[MachineId, SimMachine] = {}
        self.delay_s: dict[str, float] = {}
        self.offered = frozenset({Capability.FREEZE})
        self.refusal = ""
        self.version = "1"
        self._guests = guests

    @property
    def name(self) -> RuntimeName:
        return RuntimeName.SIM

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.offered

    def fail(self, method: str, *, nth: int = 1) -> None:
        """Make the `nth` call of `method` from now on (1: the next) raise RuntimeFailed, before any effect."""
        self._failures.add((method, self._calls[method] + nth))

    def exit_machine(self, machine_id: MachineId, cause: ExitCause, exit_code: int | None = None) -> None:
        """Let a machine end by itself."""
        self._end(self.machines[machine_id], cause, exit_code)

    async def start(self, spec: MachineSpec) -> MachineStatus:
        await self._step("start", spec.machine_id)
        if spec.machine_id in self.machines:
            raise WrongState(f"The machine {spec.machine_id} has been started already.")
        if spec.memory is not None and self._guests is not None:
            self._guests.load(self._read_memory(spec.memory))
        self._next_pid += 1
        self.machines[spec.machine_id] = SimMachine(spec=spec, pid=self._next_pid)
        return await self.inspect(spec.machine_id)

    async def destroy(self, machine_id: MachineId) -> None:
        await self._step("destroy", machine_id)
        machine = self.machines.pop(machine_id, None)
        if machine is not None:
            self._end(machine, ExitCause.DESTROYED, None)

    async def freeze(self, machine_id: MachineId) -> None:
        await self._step("freeze", machine_id)
        self._living(machine_id).is_frozen = True

    async def thaw(self, machine_id: MachineId) -> None:
        await self._step("thaw", machine_id)
        self._living(machine_id).is_frozen = False

    async def reclaim(self, machine_id: MachineId) -> int:
        self._living(machine_id).reclaim_count += 1
        return 0

    async def take_back(self, machine_id: MachineId) -> int:
        machine = self._living(machine_id)
        if machine.is_frozen:
            raise WrongState(f"The simulated machine {machine_id} stands still, so its kernel gives nothing back.")
        machine.take_back_count += 1
        return 0

    async def save_memory(self, machine_id: MachineId, directory: Path) -> None:
        await self._step("save_memory", machine_id)
        machine = self._living(machine_id)
        if not machine.is_frozen or self._guests is None:
            raise RuntimeFailed(f"The simulated machine {machine_id} does not stand still.")
        (directory / MEMORY_NAME).write_text(self._guests.dump(machine.spec.env))

    async def memory_version(self) -> str:
        return self.version

    async def memory_refusal(self, directory: Path) -> str:
        return self.refusal

    def _read_memory(self, directory: Path) -> str:
        try:
            return (directory / MEMORY_NAME).read_text()
        except OSError as exc:
            raise RuntimeFailed("The simulated memory cannot be read.", detail=str(exc)) from exc

    def _living(self, machine_id: MachineId) -> SimMachine:
        machine = self.machines.get(machine_id)
        if machine is None or machine.exit is not None:
            raise RuntimeFailed(f"The simulated machine {machine_id} does not run.")
        return machine

    async def inspect(self, machine_id: MachineId) -> MachineStatus:
        machine = self.machines.get(machine_id)
        is_running = machine is not None and machine.exit is None
        return MachineStatus(
            machine_id=machine_id,
            is_running=is_running,
            pid=machine.pid if machine is not None and is_running else None,
        )

    async def wait_exit(self, machine_id: MachineId) -> MachineExit:
        machine = self.machines.get(machine_id)
        if machine is None:
            return MachineExit(machine_id=machine_id, cause=ExitCause.LOST)
        await machine.ended.wait()
        return machine.exit or MachineExit(machine_id=machine_id, cause=ExitCause.LOST)

    async def usage(self, machine_id: MachineId) -> Usage | None:
        await self._step("usage", machine_id)
        machine = self.machines.get(machine_id)
        if machine is None or machine.exit is not None:
            return None
        return Usage(
            cpu_ns=machine.cpu_ns,
            memory_bytes=machine.memory_bytes,
            memory_peak_bytes=machine.memory_bytes,
            disk_bytes=0,
            process_count=1,
            oom_kill_count=0,
        )

    async def recover(self) -> tuple[MachineId, ...]:
        """Every machine that still runs; what ended meanwhile stays in the table until it is destroyed."""
        return tuple(machine_id for machine_id, machine in self.machines.items() if machine.exit is None)

    async def close(self) -> None:
        """Nothing goes on behind."""

    async def _step(self, method: str, machine_id: MachineId) -> None:
        self._calls[method] += 1
        if (method, self._calls[method]) in self._failures:
            self._failures.discard((method, self._calls[method]))
            raise RuntimeFailed(f"The simulated {method} of {machine_id} failed, as it was told to.")
        if delay_s := self.delay_s.get(method):
            await self._clock.sleep(delay_s)

    @staticmethod
    def _end(machine: SimMachine, cause: ExitCause, exit_code: int | None) -> None:
        if machine.exit is None:
            machine.exit = MachineExit(machine_id=machine.spec.machine_id, cause=cause, exit_code=exit_code)
            machine.ended.set()
