"""The warm pool's hands: looks at the machines, asks `decide_refill`, starts and ends warm ones."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from firebrick.log import get_log
from firebrick.model.errors import FirebrickError
from firebrick.model.ids import MachineId
from firebrick.node.actor_state import ActorState
from firebrick.node.drivers import NodeDrivers, NodeSettings, WarmKey
from firebrick.node.records import key_of
from firebrick.node.sandbox_actor import SandboxActor
from firebrick.node.warm_demand import Demand
from firebrick.node.warm_pool import HOT_FOR_S, WarmLimits, WarmMachine, WarmView, decide_refill

MEASURE_EVERY_S = 30.0
RETRY_FIRST_S = 1.0
RETRY_LONGEST_S = 60.0

log = get_log("node")

StartActor = Callable[[WarmKey], SandboxActor]


class WarmPool:
    """Holds no machine: the warm ones are those actors that nobody has claimed. `wanted_count`: as many it would keep
    now, had it the memory and the slots."""

    def __init__(
        self,
        settings: NodeSettings,
        drivers: NodeDrivers,
        actors: Mapping[MachineId, SandboxActor],
        start: StartActor,
    ) -> None:
        self._settings = settings
        self._drivers = drivers
        self._clock = drivers.clock
        self._actors = actors
        self._start = start
        self._limits = WarmLimits(
            count=settings.warm_count,
            memory_bytes=settings.warm_memory_mib << 20,
            start_concurrency=settings.start_concurrency,
        )
        self._poked = asyncio.Event()
        self._last_used_s: dict[WarmKey, float] = {}
        self._demand: dict[WarmKey, Demand] = {}
        self.wanted_count = 0
        self._last_create_s = float("-inf")
        self._measured_bytes: dict[WarmKey, int] = {}
        self._memory_bytes: dict[MachineId, tuple[float, int]] = {}
        self._unclaimed: dict[MachineId, WarmKey] = {}
        self._ended_by_us: set[MachineId] = set()
        self._failure_count: Counter[WarmKey] = Counter()
        self._retry_at_s: dict[WarmKey, float] = {}

    def take(self, key: WarmKey) -> SandboxActor | None:
        """A ready machine of that kind, to be claimed at once; None when there is none. Notes the demand."""
        now_s = self._clock.monotonic_s()
        self._last_used_s[key] = now_s
        self._demand[key] = self._demand.get(key, Demand()).after_create(now_s)
        self.touch()
        for actor in self._actors.values():
            if actor.is_claimable and key_of(actor.machine.record) == key:
                self._failure_count.pop(key, None)
                self._unclaimed.pop(actor.machine.machine_id, None)
                return actor
        return None

    def touch(self) -> None:
        """Somebody is creating sandboxes: leave them the CPU for a moment."""
        self._last_create_s = self._clock.monotonic_s()
        self.poke()

    def poke(self) -> None:
        self._poked.set()

    def make_room(self) -> None:
        """A sandbox needs a slot; give up a warm machine when there is none left."""
        if self._drivers.slots.free_count > 0:
            return
        warm = next((actor for actor in self._actors.values() if actor.is_claimable), None)
        if warm is not None:
            self._end(warm)

    async def run(self) -> None:
        """Keep the pool filled until cancelled."""
        while True:
            self._poked.clear()
            try:
                look_again_s = await self._refill()
            except Exception:
                # Task root: creates fall back to cold starts, and the next round may work.
                log.exception("warm.round_failed")
                look_again_s = RETRY_LONGEST_S
            await self._wait(look_again_s)

    async def _refill(self) -> float | None:
        await self._measure()
        self._note_failures()
        plan = decide_refill(self._view(), self._limits)
        self.wanted_count = plan.wanted_count
        for machine_id in plan.end:
            self._end(self._actors[machine_id])
        for key in plan.start:
            self._begin(key)
        return plan.look_again_s

    async def _wait(self, longest_s: float | None) -> None:
        """Until poked, or `longest_s`; a change that came while we were deciding counts."""
        seconds = MEASURE_EVERY_S if longest_s is None else min(longest_s, MEASURE_EVERY_S)
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        poked = asyncio.ensure_future(self._poked.wait())
        try:
            await asyncio.wait({sleeping, poked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleeping, poked):
                task.cancel()
            await asyncio.wait({sleeping, poked})

    def _begin(self, key: WarmKey) -> None:
        try:
            self._drivers.images.image(key.build_id)
        except FirebrickError:
            self._note_failure(key)
            return
        actor = self._start(key)
        self._unclaimed[actor.machine.machine_id] = key

    def _end(self, actor: SandboxActor) -> None:
        if actor.machine.machine_id in self._unclaimed:
            self._ended_by_us.add(actor.machine.machine_id)
        actor.begin_kill()

    def _view(self) -> WarmView:
        now_s = self._clock.monotonic_s()
        self._last_used_s = {key: at_s for key, at_s in self._last_used_s.items() if now_s - at_s < HOT_FOR_S}
        self._demand = {key: demand for key, demand in self._demand.items() if key in self._last_used_s}
        return WarmView(
            now_s=now_s,
            always_hot=self._settings.always_hot,
            last_used_s=dict(self._last_used_s),
            retry_at_s=dict(self._retry_at_s),
            measured_bytes=dict(self._measured_bytes),
            machines=tuple(self._warm_machine(actor) for actor in self._actors.values() if actor.is_unclaimed),
            starting_count=sum(actor.is_settling for actor in self._actors.values()),
            last_create_s=self._last_create_s,
            free_slot_count=self._drivers.slots.free_count,
            demand={key: demand.wanted_count(now_s) for key, demand in self._demand.items()},
        )

    def _warm_machine(self, actor: SandboxActor) -> WarmMachine:
        machine_id = actor.machine.machine_id
        return WarmMachine(
            machine_id=machine_id,
            key=key_of(actor.machine.record),
            is_ready=actor.state is ActorState.WARM,
            memory_bytes=self._memory_bytes[machine_id][1] if machine_id in self._memory_bytes else None,
        )

    async def _measure(self) -> None:
        now_s = self._clock.monotonic_s()
        warm = [actor for actor in self._actors.values() if actor.is_claimable]
        known = {actor.machine.machine_id for actor in warm}
        self._memory_bytes = {key: value for key, value in self._memory_bytes.items() if key in known}
        for actor in warm:
            machine_id = actor.machine.machine_id
            at_s = self._memory_bytes.get(machine_id, (float("-inf"), 0))[0]
            if now_s - at_s < MEASURE_EVERY_S:
                continue
            try:
                usage = await actor.machine.runtime.usage(machine_id)
            except FirebrickError as exc:
                log.warning("warm.unmeasured", machine_id=machine_id, message=exc.message)
                continue
            if usage is not None:
                key = key_of(actor.machine.record)
                self._memory_bytes[machine_id] = (now_s, usage.memory_bytes)
                self._measured_bytes[key] = max(usage.memory_bytes, self._measured_bytes.get(key, 0))

    def _note_failures(self) -> None:
        """A warm machine that ended without being asked to: try again later, not at once."""
        for machine_id, key in list(self._unclaimed.items()):
            actor = self._actors.get(machine_id)
            if actor is not None and actor.is_unclaimed:
                continue
            del self._unclaimed[machine_id]
            if machine_id not in self._ended_by_us:
                self._note_failure(key)
            self._ended_by_us.discard(machine_id)

    def _note_failure(self, key: WarmKey) -> None:
        self._failure_count[key] += 1
        pause_s = min(RETRY_FIRST_S * 2 ** (self._failure_count[key] - 1), RETRY_LONGEST_S)
        self._retry_at_s[key] = self._clock.monotonic_s() + pause_s
        log.warning("warm.retry", build_id=key.build_id, runtime=key.runtime, retry_s=pause_s)
