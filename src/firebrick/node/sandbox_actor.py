"""One task that owns one machine, from its start to the last of its tear-down.

    STARTING ──▶ WARM ──▶ CLAIMED ──▶ RUNNING ──▶ ENDING ──▶ ENDED
        └─────────┴──────────┴───────────┴──── kill, exit, failure

Others only ask: `claim` is accepted by a WARM machine and by no other, `kill` by all. A cold start is a machine
that was claimed before it was started. A kill at any moment cancels what is under way and takes the one way back.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from firebrick.clock import Clock
from firebrick.guestlink.base import GuestInit, GuestSilent
from firebrick.log import bound, get_log
from firebrick.model.errors import FirebrickError, Internal, NotFound, WrongState
from firebrick.model.ids import SandboxId
from firebrick.model.machine import ExitCause, MachineExit
from firebrick.node.drivers import NodeDrivers
from firebrick.node.guest_log import Console, EndedLogs, LogRing, from_guest
from firebrick.node.machine import HOSTNAME, Machine
from firebrick.node.records import MachineState
from firebrick.node.usage import CpuMeter
from firebrick.rpc.node_api import LogEntry, NodeSandbox, SandboxUsage, StartSandbox

LOG_PULL_S = 30.0
LOG_TIMEOUT_S = 2.0
LAST_LOG_TIMEOUT_S = 0.05
"""At a kill: the caller waits for it, and the guest may be stalling."""

WARM_CHECK_S = 5.0
RETRY_FIRST_S = 0.2
RETRY_LONGEST_S = 30.0

log = get_log("node")


class ActorState(StrEnum):
    STARTING = "starting"
    WARM = "warm"
    CLAIMED = "claimed"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorHooks:
    """What an actor tells its supervisor; each is called in the actor's task and must not wait.

    `has_settled` is called once for a machine that was given a sandbox: with the sandbox, or with the reason
    why it did not come to run; then the guest is gone."""

    has_changed: Callable[["SandboxActor"], None]
    has_settled: Callable[["SandboxActor", NodeSandbox | FirebrickError], None]
    has_exited: Callable[["SandboxActor", MachineExit], None]


class SandboxActor:
    """Owner of one machine. `run` is its task; cancelling it leaves the machine as it is, for a later process."""

    def __init__(
        self,
        machine: Machine,
        drivers: NodeDrivers,
        *,
        gate: asyncio.Semaphore,
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
        self._ended_logs = ended_logs
        self._hooks = hooks
        self._kill = asyncio.Event()
        self._tried = asyncio.Event()
        self._is_gone = False
        self._claimed = asyncio.Event()
        self._is_settled = False
        self.is_from_warm = False
        self._failure: FirebrickError | None = None
        self._ended: MachineExit | None = None
        self._ring = LogRing()
        self._console = Console(machine.console, machine.directory / "console.jsonl", self._ring, self._clock)
        self._log_next = 0
        self._log_lock = asyncio.Lock()
        self._meter = CpuMeter(base_s=self._clock.monotonic_s())
        if request is not None:
            self._claimed.set()
        if machine.record.state is MachineState.RUNNING:
            # Adopted. From the first moment it is listed: one that is missing would be taken for lost.
            self.state = ActorState.RUNNING
            self._is_settled = True
            self._meter.base_ns = None
            self._claimed.set()

    # What others ask

    def claim(self, request: StartSandbox) -> None:
        """Give this warm machine to a sandbox; `has_settled` tells how it went. Raises WrongState when not WARM."""
        if not self.is_claimable:
            raise WrongState(f"The machine {self.machine.machine_id} is {self.state}, not warm.")
        self.request = request
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

    def begin_kill(self) -> None:
        """Ask for the end; `gone` waits for it."""
        self._kill.set()

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
        return SandboxUsage(
            timestamp=self._clock.now(),
            cpu_ns=reading.cpu_ns,
            cpu_used_pct=self._meter.read(now_s=self._clock.monotonic_s(), cpu_ns=reading.cpu_ns),
            memory_bytes=reading.memory_bytes,
            memory_limit_bytes=record.limits.memory_mib << 20,
            disk_bytes=await self._drivers.rootfs.usage_bytes(record.machine_id),
            disk_limit_bytes=record.limits.disk_mib << 20,
            process_count=reading.process_count,
        )

    async def logs(self) -> tuple[LogEntry, ...]:
        """Everything it has said, as far as it is kept, oldest first."""
        if self.state in (ActorState.RUNNING, ActorState.CLAIMED):
            await self._pull_logs(LOG_TIMEOUT_S)
        return self._ring.entries()

    def describe(self) -> NodeSandbox | None:
        """The sandbox as the node reports it; None when it is nobody's or does not run."""
        record = self.machine.record
        if self.state is not ActorState.RUNNING or record.sandbox_id is None or record.started_at is None:
            return None
        return NodeSandbox(
            sandbox_id=record.sandbox_id,
            machine_id=record.machine_id,
            runtime=record.runtime,
            address=str(self.machine.slot.address),
            started_at=record.started_at,
            from_warm=record.from_warm,
        )

    # The task

    async def run(self, *, adopt: bool = False) -> None:
        """The whole life. With `adopt`, of a machine that runs already."""
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
            await self.machine.start()
            early = await self._exit_before_ready()
        if early is not None:
            return early
        log.info("machine.ready", **self.machine.step_ms)
        if self.request is None:
            self.machine.save(state=MachineState.WARM)
            self._set_state(ActorState.WARM)
        else:
            self._set_state(ActorState.CLAIMED)
        return await self._watch()

    async def _exit_before_ready(self) -> MachineExit | None:
        """Wait for the guest agent; a machine that ends meanwhile need not be waited for."""
        machine = self.machine
        ready = asyncio.ensure_future(machine.wait_ready())
        ended = asyncio.ensure_future(machine.runtime.wait_exit(machine.machine_id))
        return await first_of(ended, ready)

    async def _adopted_life(self) -> MachineExit:
        self._console.restore()
        if self.state is not ActorState.RUNNING:
            # Nobody has it yet, so it may be judged: what does not answer now is not worth keeping.
            await self.machine.link.wait_ready(timeout_s=WARM_CHECK_S)
            self._set_state(ActorState.WARM)
        log.info("machine.adopted", state=self.state)
        return await self._watch()

    async def _watch(self) -> MachineExit:
        """Serve the machine until it ends by itself."""
        async with asyncio.TaskGroup() as group:
            works = (self._console.drain(), self._serve(), self._follow_logs())
            beside = [group.create_task(work) for work in works]
            ended = await self.machine.runtime.wait_exit(self.machine.machine_id)
            for task in beside:
                task.cancel()
        return ended

    async def _serve(self) -> None:
        await self._claimed.wait()
        if self._is_settled or self.request is None:
            return
        try:
            await self._settle(self.request)
        except FirebrickError as exc:
            self._failure = exc
            self._kill.set()
            return
        sandbox = self.describe()
        if sandbox is not None:
            self._settle_with(sandbox)

    async def _settle(self, request: StartSandbox) -> None:
        """Make the machine this sandbox's."""
        now = self._clock.now()
        # NOTE: written before the guest learns anything, so that a restart never takes a machine that knows
        # one sandbox's secrets for a warm one.
        self.machine.save(sandbox_id=request.sandbox_id, state=MachineState.STARTING, from_warm=self.is_from_warm)
        if request.deny_internet:
            await self._drivers.slots.deny_internet(self.machine.slot)
        await self.machine.link.init(
            GuestInit(
                sandbox_id=request.sandbox_id,
                template_id=request.template_id,
                timestamp=now,
                hostname=HOSTNAME,
                env=request.env,
                metadata=request.metadata,
                access_token=request.access_token,
            )
        )
        self.machine.link.close()
        self.machine.save(state=MachineState.RUNNING, started_at=now)
        self._set_state(ActorState.RUNNING)
        log.info("sandbox.started", sandbox_id=request.sandbox_id, from_warm=self.is_from_warm)

    async def _follow_logs(self) -> None:
        await self._claimed.wait()
        while True:
            await self._clock.sleep(LOG_PULL_S)
            await self._pull_logs(LOG_TIMEOUT_S)

    async def _pull_logs(self, timeout_s: float) -> None:
        # One at a time: two pulls of the same page would write it twice.
        async with self._log_lock:
            try:
                entries, self._log_next = await self.machine.link.logs(self._log_next, timeout_s=timeout_s)
            except GuestSilent:
                return
            finally:
                # An idle sandbox holds no descriptor of ours.
                self.machine.link.close()
            for entry in entries:
                self._ring.append(from_guest(entry))

    async def _pull_last_logs(self) -> None:
        try:
            # NOTE: around the lock too, which a reader's slower pull may hold.
            async with asyncio.timeout(LAST_LOG_TIMEOUT_S):
                await self._pull_logs(LAST_LOG_TIMEOUT_S)
        except TimeoutError:
            return

    # The one way back

    async def _end(self) -> None:
        was_running = self.state is ActorState.RUNNING
        is_asked_for = self._ended is None and self._failure is None
        self._set_state(ActorState.ENDING)
        if was_running and is_asked_for:
            await self._pull_last_logs()
        await self._until_done("destroy", self._destroy)
        self._is_gone = True
        self._tried.set()
        self._console.drain_rest()
        if was_running and not is_asked_for:
            self._hooks.has_exited(self, self._ended or self._exit_of_failure())
        await self._keep_log()
        await self._until_done("release", self.machine.release)
        self._refuse()
        self._set_state(ActorState.ENDED)
        log.info("machine.ended", cause=self._ended.cause if self._ended else None, is_asked_for=is_asked_for)

    async def _destroy(self) -> None:
        if self.machine.directory.exists():
            try:
                self.machine.save(state=MachineState.ENDING)
            except Internal as exc:
                # A full disk must not keep a sandbox alive; a restart would only have to be told again.
                log.warning("machine.record_stale", message=exc.message, detail=exc.detail)
        await self.machine.destroy()

    async def _until_done(self, what: str, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Repeat a step of the way back until it works: giving up would leak, going on would be unsafe."""
        pause_s = RETRY_FIRST_S
        while True:
            try:
                return await step()
            except Exception as exc:  # noqa: BLE001 - task root: whatever it is, the next attempt may work
                detail = exc.detail if isinstance(exc, FirebrickError) else repr(exc)
                log.error("machine.end_failed", step=what, reason=str(exc), detail=detail, retry_s=pause_s)
            self._tried.set()
            self._refuse()
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_LONGEST_S)

    def _refuse(self) -> None:
        """Tell why the sandbox did not come to run; nothing when it did."""
        if self._failure is not None:
            self._settle_with(self._failure)
        elif self._ended is not None:
            said = [entry.message for entry in self._ring.entries()[-5:]]
            why = f"The machine ended while it was starting ({self._ended.cause})."
            self._settle_with(Internal(why, detail="\n".join(said)))
        else:
            self._settle_with(WrongState("The sandbox was killed while it was starting."))

    def _settle_with(self, outcome: NodeSandbox | FirebrickError) -> None:
        if self.request is not None and not self._is_settled:
            self._is_settled = True
            self._hooks.has_settled(self, outcome)

    def _exit_of_failure(self) -> MachineExit:
        detail = self._failure.message if self._failure else ""
        return MachineExit(machine_id=self.machine.machine_id, cause=ExitCause.LOST, detail=detail)

    async def _keep_log(self) -> None:
        if self.sandbox_id is None:
            return
        try:
            await asyncio.to_thread(self._ended_logs.save, self.sandbox_id, self._ring.entries())
        except OSError as exc:
            log.warning("sandbox.log_lost", reason=str(exc))

    async def _or_kill(self, life: Coroutine[Any, Any, MachineExit]) -> MachineExit | None:
        """Live until the end or until killed; None means killed. The loser is cancelled and waited for."""
        return await first_of(asyncio.ensure_future(life), asyncio.ensure_future(self._kill.wait()))

    def _set_state(self, state: ActorState) -> None:
        self.state = state
        self._hooks.has_changed(self)


async def first_of(work: "asyncio.Future[MachineExit]", other: "asyncio.Future[Any]") -> MachineExit | None:
    """The result of `work`, or None when `other` is done before it; the loser is cancelled and waited for.
    Raises what the first one raised."""
    try:
        await asyncio.wait({work, other}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        other.result()
        return None
    finally:
        for task in (work, other):
            task.cancel()
        await asyncio.wait({work, other})
