"""One task that owns one machine, from its start to the last of its tear-down.

    STARTING ──▶ WARM ──▶ CLAIMED ──▶ RUNNING ⇄ PAUSED ──▶ ENDING ──▶ ENDED
        └─────────┴──────────┴───────────┴─────────┴──── kill, exit, failure

Others only ask: `claim` is accepted by a WARM machine and by no other, `kill` by all. Pause, resume and snapshot are
orders, done one at a time by the owner. A cold start is a machine that was claimed before it was started. A kill at
any moment cancels what is under way and takes the one way back; of a machine whose record says `kept` the disk stays.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from firebrick.clock import Clock
from firebrick.guestlink.base import GuestSilent
from firebrick.log import bound, get_log
from firebrick.model.egress import OPEN
from firebrick.model.errors import FirebrickError, Internal, NotFound, WrongState
from firebrick.model.ids import SandboxId
from firebrick.model.machine import ExitCause, MachineExit
from firebrick.node.actor_state import ActorState
from firebrick.node.drivers import NodeDrivers
from firebrick.node.guest_files import guest_init
from firebrick.node.guest_log import EndedLogs
from firebrick.node.kept import sandbox_of
from firebrick.node.machine import DiskSource, Machine
from firebrick.node.machine_log import MachineLog
from firebrick.node.orders import Order, failures_of, first_of
from firebrick.node.records import MachineState
from firebrick.node.template_memory import TemplateMemories
from firebrick.node.usage import CpuMeter, RestWatch, usage_of
from firebrick.rpc.node_api import NodeSandbox, SandboxUsage, StartSandbox
from firebrick.runtimes.base import RuntimeFailed

WARM_CHECK_S = 5.0

log = get_log("node")


_TALKING = (ActorState.RUNNING, ActorState.CLAIMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorHooks:
    """What an actor tells its supervisor; each is called in the actor's task and must not wait.

    `has_settled` is called once for a machine that was given a sandbox: with the sandbox, or with the reason
    why it did not come to run; then the guest is gone. `has_kept`: only its disk is left, as its record says."""

    has_changed: Callable[["SandboxActor"], None]
    has_settled: Callable[["SandboxActor", NodeSandbox | FirebrickError], None]
    has_exited: Callable[["SandboxActor", MachineExit], None]
    has_kept: Callable[["SandboxActor"], None]


class SandboxActor:
    """Owner of one machine. `run` is its task; cancelling it leaves the machine as it is, for a later process."""

    def __init__(
        self,
        machine: Machine,
        drivers: NodeDrivers,
        *,
        gate: asyncio.Semaphore,
        saves: asyncio.Semaphore,
        memories: TemplateMemories,
        ended_logs: EndedLogs,
        hooks: ActorHooks,
        request: StartSandbox | None = None,
    ) -> None:
        self.machine = machine
        self.state = ActorState.STARTING
        self.request = request
        self._drivers = drivers
        self._clock: Clock = drivers.clock
        self._gate = gate
        self._saves = saves
        self._memories = memories
        self._ended_logs = ended_logs
        self._hooks = hooks
        self._orders: asyncio.Queue[Order] = asyncio.Queue()
        self._kill = asyncio.Event()
        self._tried = asyncio.Event()
        self._kept = asyncio.Event()
        self._is_gone = False
        self._is_ready = False
        self._was_adopted = False
        self._claimed = asyncio.Event()
        self._is_settled = False
        self.is_from_warm = False
        self._source: DiskSource | None = None
        self._failure: FirebrickError | None = None
        self._ended: MachineExit | None = None
        self.log = MachineLog(machine, ended_logs, drivers.clock, lambda: self.state in _TALKING)
        self._meter = CpuMeter(base_s=self._clock.monotonic_s())
        if request is not None:
            self._claimed.set()
        if machine.record.state in (MachineState.RUNNING, MachineState.PAUSED):
            # Adopted. From the first moment it is listed: one that is missing would be taken for lost.
            self.state = ActorState(machine.record.state)
            self._is_settled = True
            self._meter.base_ns = None
            self._claimed.set()

    # What others ask

    def claim(self, request: StartSandbox, source: DiskSource | None = None) -> None:
        """Give this warm machine to a sandbox, with what its disk begins with where a machine writes inside;
        `has_settled` tells how it went. Raises WrongState when not WARM."""
        if not self.is_claimable:
            raise WrongState(f"The machine {self.machine.machine_id} is {self.state}, not warm.")
        self.request = request
        self._source = source
        self.is_from_warm = True
        self._set_state(ActorState.CLAIMED)
        self._claimed.set()

    @property
    def sandbox_id(self) -> SandboxId | None:
        """Whose machine this is; None: nobody's."""
        return self.request.sandbox_id if self.request is not None else self.machine.record.sandbox_id

    @property
    def is_gone(self) -> bool:
        """Nothing of the guest runs any more; what it held may still be given back."""
        return self._is_gone

    @property
    def is_unclaimed(self) -> bool:
        """Nobody's, and likely to become or stay of use."""
        return self.request is None and self.state in (ActorState.STARTING, ActorState.WARM) and not self._kill.is_set()

    @property
    def is_claimable(self) -> bool:
        return self.is_unclaimed and self.state is ActorState.WARM

    @property
    def is_settling(self) -> bool:
        """Somebody waits for it."""
        return self.request is not None and self.state in (ActorState.STARTING, ActorState.CLAIMED)

    @property
    def is_replaceable(self) -> bool:
        """Should it fail, a machine that boots may do better for its sandbox."""
        return self.is_from_warm or self.machine.is_from_template

    @property
    def could_not_go_on(self) -> bool:
        """It was to go on from a template's memory, and did not get ready."""
        is_at_fault = self._ended is not None or isinstance(self._failure, RuntimeFailed | GuestSilent)
        return self.machine.is_from_template and not self._is_ready and is_at_fault

    def begin_kill(self) -> None:
        """Ask for the end; `gone` waits for it."""
        self._kill.set()

    async def pause(self) -> datetime:
        """Freeze it with its memory; since when it is paused. Raises FirebrickError: it runs on, or NotFound."""
        return cast(datetime, await self._do(self._pause))

    async def resume(self, request: StartSandbox) -> NodeSandbox:
        """Let it run again, with new settings. Raises FirebrickError: it is still paused, or NotFound."""
        return cast(NodeSandbox, await self._do(lambda: self._resume(request)))

    async def capture(self, place: Path, *, keep_memory: bool) -> bool:
        """Copy its disk, and its memory where it can; whether it could. Raises FirebrickError: it is as it was, or
        NotFound."""
        return cast(bool, await self._do(lambda: self.machine.capture(place, keep_memory=keep_memory)))

    async def end_keeping(self, *, is_killed: bool) -> None:
        """End it, but for its disk; `has_kept` has been called when this returns. Raises FirebrickError: it is as it
        was, or NotFound."""
        await self._do(lambda: self._leave_disk(is_killed=is_killed))
        self.begin_kill()
        await self.kept()

    async def kept(self) -> None:
        """Return when only files of it are left, which its record says already."""
        await self._kept.wait()

    @property
    def leaves_files(self) -> bool:
        """It ends, and what is kept of it is the sandbox from then on."""
        return self.machine.record.state is MachineState.KEPT

    async def _do(self, work: Callable[[], Coroutine[Any, Any, object]]) -> object:
        if self.state not in (ActorState.RUNNING, ActorState.PAUSED) or self._kill.is_set():
            raise NotFound(f"The sandbox {self.sandbox_id} does not run on this node.")
        order = Order(work)
        self._orders.put_nowait(order)
        return await asyncio.shield(order.answer)

    async def gone(self) -> None:
        """Return when nothing of the guest runs any more. Raises Internal when it resists; it is tried on."""
        await self._tried.wait()
        if not self._is_gone:
            raise Internal(f"The machine {self.machine.machine_id} could not be ended yet; it is tried again.")

    async def usage(self) -> SandboxUsage:
        """One reading. Raises NotFound when the machine is gone."""
        record = self.machine.record
        reading = await self.machine.runtime.usage(record.machine_id)
        if reading is None or self.state is not ActorState.RUNNING:
            raise NotFound(f"The sandbox {record.sandbox_id} does not run on this node.")
        return usage_of(
            replace(reading, disk_bytes=await self._drivers.rootfs.usage_bytes(record.machine_id)),
            record.limits,
            now=self._clock.now(),
            cpu_used_pct=self._meter.read(now_s=self._clock.monotonic_s(), cpu_ns=reading.cpu_ns),
        )

    def describe(self) -> NodeSandbox | None:
        """The sandbox as the node reports it; None when it is nobody's, or neither runs nor is paused."""
        if self.state is ActorState.ENDING and self.leaves_files:
            # Never missing in between: it would be taken for lost.
            return sandbox_of(self.machine.record, keeps_memory=self.machine.record.has_memory)
        if self.state not in (ActorState.RUNNING, ActorState.PAUSED):
            return None
        is_paused = self.state is ActorState.PAUSED
        return sandbox_of(self.machine.record, address=str(self.machine.slot.address), keeps_memory=is_paused)

    # The task

    async def run(self, *, adopt: bool = False) -> None:
        """The whole life. With `adopt`, of a machine that runs already."""
        self._was_adopted = adopt
        with bound(machine_id=self.machine.machine_id):
            try:
                self._ended = await self._or_kill(self._adopted_life() if adopt else self._life())
            except FirebrickError as exc:
                self._failure = exc
                log.warning("machine.failed", message=exc.message, detail=exc.detail, cause=repr(exc.__cause__))
            except Exception as exc:
                # Task root: an unforeseen fault ends this machine and no other.
                self._failure = Internal("The machine's owner failed.", detail=repr(exc))
                log.exception("machine.owner_failed")
            await self._end()

    async def _life(self) -> MachineExit:
        async with self._gate:
            await self.machine.start(OPEN if self.request is None else self.request.egress)
            early = await self._exit_before_ready()
        if early is not None:
            return early
        self._is_ready = True
        log.info("machine.ready", from_template=self.machine.is_from_template, **self.machine.step_ms)
        if self.machine.is_from_template and self.request is None:
            # It has what it must not share, and nobody's settings are to come first.
            await self.machine.link.go_on()
        await self._save_for_others()
        if self.request is None:
            self.machine.save(state=MachineState.WARM)
            self._set_state(ActorState.WARM)
        else:
            self._set_state(ActorState.CLAIMED)
        return await self._watch()

    async def _save_for_others(self) -> None:
        """Let the next machines of this kind go on from this one's memory. Nobody waits for it, but for the first
        create of a kind where no machines are kept warm."""
        is_waited_for = self.request is not None and self.machine.settings.warm_count > 0
        if self.machine.source is not None or is_waited_for or not self._memories.wants(self.machine.record):
            return
        async with self._saves:
            is_made = await self._memories.make(self.machine)
        if not is_made:
            # It may not have come out of that as it went in.
            await self.machine.link.wait_ready(timeout_s=WARM_CHECK_S * self.machine.settings.patience)

    async def _exit_before_ready(self) -> MachineExit | None:
        """Wait for the guest agent; a machine that ends meanwhile need not be waited for."""
        machine = self.machine
        ready = asyncio.ensure_future(machine.wait_ready())
        ended = asyncio.ensure_future(machine.runtime.wait_exit(machine.machine_id))
        return await first_of(ended, ready)

    async def _adopted_life(self) -> MachineExit:
        # NOTE: whatever the former process was at, the record says what was promised.
        if (freezer := self.machine.freezer) is not None:
            await (freezer.freeze if self.state is ActorState.PAUSED else freezer.thaw)(self.machine.machine_id)
        if self.state not in (ActorState.RUNNING, ActorState.PAUSED):
            # Nobody has it yet, so it may be judged: what does not answer now is not worth keeping.
            await self.machine.link.wait_ready(timeout_s=WARM_CHECK_S * self.machine.settings.patience)
            self._set_state(ActorState.WARM)
        log.info("machine.adopted", state=self.state)
        return await self._watch()

    async def _watch(self) -> MachineExit:
        """Serve the machine until it ends by itself."""
        async with asyncio.TaskGroup() as group:
            works = (self.log.drain(), self._serve())
            beside = [group.create_task(work) for work in works]
            ended = await self.machine.runtime.wait_exit(self.machine.machine_id)
            for task in beside:
                task.cancel()
        return ended

    async def _serve(self) -> None:
        await self._claimed.wait()
        if not self._is_settled and self.request is not None:
            try:
                await self._settle(self.request)
            except FirebrickError as exc:
                self._failure = exc
                self._kill.set()
                return
            sandbox = self.describe()
            if sandbox is not None:
                self._settle_with(sandbox)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.log.follow())
            group.create_task(self._reclaim())
            if self._was_adopted and self.state is ActorState.RUNNING and self.machine.keeper is not None:
                # The former process may have died between holding its processes and letting them go.
                await self.machine.link.go_on()
            while True:
                await (await self._orders.get()).run()

    async def _reclaim(self) -> None:
        """Give the memory of a paused machine back after a while: all of it, by ending the machine with its memory in
        files, where the runtime keeps memory; else what can be read again, once for each pause. Of a machine that runs
        and has come to rest, what its guest has freed."""
        done_for = None
        watch = RestWatch()
        while True:
            await self._clock.sleep(self.machine.settings.reclaim_after_s)
            if await self._comes_to_rest(watch):
                self._orders.put_nowait(Order(self._take_back))
            paused_at, freezer = self.machine.record.paused_at, self.machine.freezer
            if self.machine.may_leave_memory:
                try:
                    # NOTE: waited for out here: within an order it would keep a resume waiting for others' saves.
                    async with self._saves:
                        await self._do(self._leave_memory)
                except FirebrickError as exc:
                    # It is paused as before, and safe.
                    log.warning("sandbox.memory_not_saved", sandbox_id=self.sandbox_id, reason=exc.message)
            if self.state is ActorState.PAUSED and freezer is not None and paused_at != done_for:
                done_for = paused_at
                freed_bytes = await freezer.reclaim(self.machine.machine_id)
                log.info("sandbox.reclaimed", sandbox_id=self.sandbox_id, freed_bytes=freed_bytes)

    async def _comes_to_rest(self, watch: RestWatch) -> bool:
        if not self.machine.gives_back or self.state is not ActorState.RUNNING:
            return False
        try:
            reading = await self.machine.runtime.usage(self.machine.machine_id)
        except FirebrickError as exc:
            # It is asked again; a sandbox does not end for that.
            log.warning("sandbox.unmeasured", sandbox_id=self.sandbox_id, reason=exc.message)
            return False
        return reading is not None and watch.comes_to_rest(now_s=self._clock.monotonic_s(), cpu_ns=reading.cpu_ns)

    async def _take_back(self) -> None:
        if self.state is ActorState.RUNNING:
            await self.machine.take_back()

    async def _pause(self) -> datetime:
        if self.state is ActorState.RUNNING:
            await self.log.pull_last()
            is_silent = await self.machine.is_silent()
            await self.machine.freeze(self._clock.now(), is_silent=is_silent)
            self.machine.link.close()
            self._set_state(ActorState.PAUSED)
            log.info("sandbox.paused", sandbox_id=self.sandbox_id)
        assert self.machine.record.paused_at is not None
        return self.machine.record.paused_at

    async def _leave_memory(self) -> None:
        """End it with its memory in files. Raises FirebrickError: it is paused as before."""
        if self.state is ActorState.PAUSED and self.machine.may_leave_memory:
            await self.machine.leave_memory()
            self.begin_kill()

    async def _leave_disk(self, *, is_killed: bool) -> None:
        # One that is killed need not answer, and one that is frozen cannot.
        is_silent = self.machine.record.is_silent
        if self.state is ActorState.RUNNING and not is_killed:
            is_silent = await self.machine.is_silent()
        await self.machine.leave_disk(self._clock.now(), is_killed=is_killed, is_silent=is_silent)

    async def _resume(self, request: StartSandbox) -> NodeSandbox:
        if self.state is ActorState.PAUSED:
            freezer = self.machine.freezer
            assert freezer is not None
            try:
                await freezer.thaw(self.machine.machine_id)
                await self._give_settings(request)
                self.machine.save(
                    state=MachineState.RUNNING, paused_at=None, kept_memory=True, is_silent=False, is_held=False
                )
            except BaseException:
                # Its processes may have gone on: in place that does no harm, from files it would.
                self.machine.record = replace(self.machine.record, is_held=False)
                await freezer.freeze(self.machine.machine_id)
                raise
            self.machine.archive.unlink(missing_ok=True)
            self._set_state(ActorState.RUNNING)
            log.info("sandbox.resumed", sandbox_id=request.sandbox_id, kept_memory=True)
        sandbox = self.describe()
        assert sandbox is not None
        return sandbox

    async def _settle(self, request: StartSandbox) -> None:
        """Make the machine this sandbox's."""
        now = self._clock.now()
        # NOTE: written before the guest learns anything, so that a restart never takes a machine that knows
        # one sandbox's secrets for a warm one.
        self.machine.save(sandbox_id=request.sandbox_id, state=MachineState.STARTING, from_warm=self.is_from_warm)
        if self.is_from_warm and not request.egress.is_open:
            await self._drivers.slots.restrict(self.machine.slot, request.egress)
        if self._source is not None:
            await self.machine.take_in(self._source)
        if self.machine.source is not None and self.machine.source.note:
            self.log.note("warn", f"Its processes were started anew. {self.machine.source.note}", {"source": "node"})
        await self._give_settings(request)
        self.machine.save(state=MachineState.RUNNING, started_at=now, kept_memory=self.machine.goes_on)
        self._set_state(ActorState.RUNNING)
        log.info("sandbox.started", sandbox_id=request.sandbox_id, from_warm=self.is_from_warm)

    async def _give_settings(self, request: StartSandbox) -> None:
        await self.machine.link.init(guest_init(request, self._clock.now()))
        self.machine.link.close()

    # The one way back

    async def _end(self) -> None:
        was_running = self.state is ActorState.RUNNING
        is_asked_for = self._ended is None and self._failure is None
        if self.state is ActorState.PAUSED and not is_asked_for and not self.leaves_files:
            # Its memory is lost, and not by its user's wish: the disk is what was promised.
            log.warning("machine.memory_lost", sandbox_id=self.sandbox_id)
            await self._until_done("keep", lambda: self._leave_disk(is_killed=False))
        if was_running and is_asked_for:
            await self.log.pull_last()
        self._set_state(ActorState.ENDING)
        while not self._orders.empty():
            self._orders.get_nowait().refuse()
        await self._until_done("destroy", self._destroy)
        self._is_gone = True
        self._tried.set()
        self.log.drain_rest()
        if was_running and not is_asked_for:
            self._hooks.has_exited(self, self._ended or self._exit_of_failure())
        if self.sandbox_id is not None:
            await self.log.save(self.sandbox_id)
        await self._until_done("release", self.machine.release)
        if self.leaves_files:
            self._hooks.has_kept(self)
            self._kept.set()
        self._refuse()
        self._set_state(ActorState.ENDED)
        log.info("machine.ended", cause=self._ended.cause if self._ended else None, is_asked_for=is_asked_for)

    async def _destroy(self) -> None:
        if self.machine.directory.exists() and not self.leaves_files:
            try:
                self.machine.save(state=MachineState.ENDING)
            except Internal as exc:
                # A full disk must not keep a sandbox alive; a restart would only have to be told again.
                log.warning("machine.record_stale", message=exc.message, detail=exc.detail)
        await self.machine.destroy()

    async def _until_done(self, what: str, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async for _ in failures_of(what, step, self._clock):
            self._tried.set()
            self._refuse()

    def _refuse(self) -> None:
        """Tell why the sandbox did not come to run; nothing when it did."""
        if self._failure is not None:
            self._settle_with(self._failure)
        elif self._ended is not None:
            why = f"The machine ended while it was starting ({self._ended.cause})."
            self._settle_with(Internal(why, detail=self.log.last_words()))
        else:
            self._settle_with(WrongState("The sandbox was killed while it was starting."))

    def _settle_with(self, outcome: NodeSandbox | FirebrickError) -> None:
        if self.request is not None and not self._is_settled:
            self._is_settled = True
            self._hooks.has_settled(self, outcome)

    def _exit_of_failure(self) -> MachineExit:
        detail = self._failure.message if self._failure else ""
        return MachineExit(machine_id=self.machine.machine_id, cause=ExitCause.LOST, detail=detail)

    async def _or_kill(self, life: Coroutine[Any, Any, MachineExit]) -> MachineExit | None:
        """Live until the end or until killed; None means killed. The loser is cancelled and waited for."""
        return await first_of(asyncio.ensure_future(life), asyncio.ensure_future(self._kill.wait()))

    def _set_state(self, state: ActorState) -> None:
        self.state = state
        self._hooks.has_changed(self)
