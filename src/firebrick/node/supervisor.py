"""`NodeAgent`: what the control plane may ask of this node. It finds the owner and lets it act.

    start ── warm machine of that kind? ── yes ──▶ its actor takes the sandbox
                                      └── no ───▶ a new actor starts a machine for it: from a template's memory
                                                  where there is one, else by a boot

One entry per sandbox id, from its start to the moment its guest is gone: that is what makes a repeated start
join the first, and a kill find a start that is under way.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

from firebrick.clock import Clock
from firebrick.log import get_log
from firebrick.model.egress import Egress
from firebrick.model.errors import DiskFull, FirebrickError, Invalid, NotFound, Unavailable, WrongState
from firebrick.model.ids import MachineId, SandboxId, SnapshotId, new_machine_id
from firebrick.model.machine import RuntimeName
from firebrick.node.actor_state import ActorState
from firebrick.node.capacity import Capacity, capacity_of, read_facts
from firebrick.node.drivers import NodeDrivers, NodeSettings, WarmKey
from firebrick.node.guest_log import EndedLogs, merge, select
from firebrick.node.kept import KeptDisks
from firebrick.node.machine import DiskSource, Machine
from firebrick.node.notices import Notices
from firebrick.node.records import MachineRecord, MachineRecords, MachineState
from firebrick.node.recovery import recover
from firebrick.node.refill import WarmPool
from firebrick.node.sandbox_actor import ActorHooks, SandboxActor
from firebrick.node.snapshots import Snapshots
from firebrick.node.task_owner import TaskOwner
from firebrick.node.template_memory import TemplateMemories
from firebrick.rpc.node_api import (
    ImportedSnapshot,
    ImportSnapshot,
    LogEntry,
    NodeDescription,
    NodeSandbox,
    NodeSnapshot,
    PausedSandbox,
    PauseSandbox,
    SandboxExit,
    SandboxUsage,
    StartSandbox,
)
from firebrick.runtimes.base import Capability

STOP_S = 10.0
"""How long a graceful stop waits for starts to be undone and tear-downs to finish; the rest is recovery's."""

SAVES_AT_ONCE = 1
"""Of memory, when pauses have lasted: nobody waits for them, and each writes as much as the disk takes."""

_AT_REST = (ActorState.WARM, ActorState.RUNNING, ActorState.PAUSED)

Answer = TypeVar("Answer")
log = get_log("node")


@dataclass(slots=True)
class _Entry:
    """A sandbox from its start until its machine is gone. `actor` changes when a warm machine fails it."""

    request: StartSandbox | None
    actor: SandboxActor
    answer: "asyncio.Future[NodeSandbox]"
    is_killed: bool = False
    source: DiskSource | None = None


class NodeAgent:
    """Implements `rpc.node_api.NodeClient` in process. `open` first, `close` last."""

    def __init__(self, drivers: NodeDrivers, settings: NodeSettings, records: MachineRecords) -> None:
        self._drivers = drivers
        self._settings = settings
        self._clock: Clock = drivers.clock
        self._records = records
        self._ended_logs = EndedLogs(
            settings.logs_dir,
            drivers.clock,
            kept_s=settings.ended_logs_kept_s,
            most_bytes=settings.ended_logs_bytes,
        )
        self._gate = asyncio.Semaphore(settings.start_concurrency)
        self._saves = asyncio.Semaphore(SAVES_AT_ONCE)
        self._actors: dict[MachineId, SandboxActor] = {}
        self._notices = Notices(drivers.memory_kills, self._actors)
        self._hooks = ActorHooks(
            has_changed=self._actor_changed,
            has_settled=self._actor_settled,
            has_exited=self._notices.actor_exited,
            has_kept=self._actor_kept,
        )
        self._tasks = TaskOwner()
        self._background = TaskOwner()
        self._entries: dict[SandboxId, _Entry] = {}
        self._kept = KeptDisks(drivers, records)
        self._snapshots = Snapshots(settings.node_dir, drivers, patience=settings.patience)
        self._memories = TemplateMemories(drivers, settings)
        self._pool = WarmPool(settings, drivers, self._actors, self._start_warm)
        self._is_open = False

    async def open(self) -> None:
        """Adopt what an earlier process left, clean up behind it, and begin to serve."""
        self._settings.machines_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        recovered = await recover(self._drivers, self._records)
        kept = recovered.adopt + recovered.resisting
        self._drivers.slots.on_refused(self._notices.connection_refused)
        await self._drivers.slots.open(frozenset(r.slot_index for r in kept if r.slot_index is not None))
        await self._drivers.rootfs.open()
        await self._snapshots.open()
        await self._memories.open()
        for record in recovered.keep:
            self._kept.add(record)
        for record in recovered.adopt:
            self._adopt(record)
        for record in recovered.resisting:
            self._own(record, None, adopt=True).begin_kill()
        self._notices.open()
        self._is_open = True
        self._background.start(self._pool.run(), name="warm pool")

    async def close(self) -> None:
        """Stop. Running, paused and warm machines stay as they are; what is being started is undone."""
        self._is_open = False
        self._notices.close()
        await self._background.close()
        await self._snapshots.close()
        for actor in list(self._actors.values()):
            if actor.state in (ActorState.STARTING, ActorState.CLAIMED):
                actor.begin_kill()
        try:
            async with asyncio.timeout(STOP_S * self._settings.patience):
                while any(a.state not in _AT_REST for a in self._actors.values()):
                    await self._clock.sleep(0.01)
        except TimeoutError:
            log.warning("node.stop_unfinished", machine_count=len(self._actors))
        await self._tasks.close()
        await self._memories.close()
        for runtime in self._drivers.runtimes.values():
            await runtime.close()
        await self._drivers.slots.close()
        await self._drivers.rootfs.close()

    # What the control plane asks

    async def describe(self) -> NodeDescription:
        capacity = self._capacity()
        states = [actor.state for actor in self._actors.values()]
        return NodeDescription(
            node_id=self._settings.node_id,
            version=version("firebrick"),
            runtimes=self._settings.offered,
            builds=self._drivers.images.builds(),
            millicpu=capacity.millicpu,
            memory_mib=capacity.memory_mib,
            disk_mib=capacity.disk_mib,
            # A warm machine gives its slot up to whoever needs it.
            free_slot_count=self._drivers.slots.free_count + states.count(ActorState.WARM),
            starting_count=sum(entry.actor.state is ActorState.STARTING for entry in self._entries.values()),
            warm_count=states.count(ActorState.WARM),
            warm_wanted_count=self._pool.wanted_count,
        )

    async def start_sandbox(self, request: StartSandbox) -> NodeSandbox:
        """See NodeClient. A caller that goes away does not stop the start; a repetition joins it."""
        if self._living(request.sandbox_id) is None and request.snapshot_id is not None:
            request, source = await self._snapshots.start_from(request.snapshot_id, request)
        else:
            source = None
        entry = self._living(request.sandbox_id)
        if self._is_at_rest(request.sandbox_id):
            raise WrongState(f"The sandbox {request.sandbox_id} is paused on this node; resume it.")
        return await asyncio.shield((entry or self._begin(request, source)).answer)

    async def pause_sandbox(self, request: PauseSandbox) -> PausedSandbox:
        paused = await self._ask_machine(request.sandbox_id, lambda entry: self._pause_here(entry.actor, request))
        if paused is not None:
            return paused
        record = self._kept.require(request.sandbox_id)
        if record.is_killed or record.paused_at is None:
            raise NotFound(f"The sandbox {request.sandbox_id} does not run on this node.")
        if not request.keep_memory:
            record = await self._kept.drop_memory(record)
        return await self._paused(record, keeps_memory=record.has_memory)

    async def _pause_here(self, actor: SandboxActor, request: PauseSandbox) -> PausedSandbox | None:
        """None: its machine has ended, and its disk is kept."""
        if request.require_healthy:
            await actor.machine.check_agent()
        if not request.keep_memory or actor.machine.freezer is None:
            await actor.end_keeping(is_killed=False)
            return None
        # Its record tells of the pause only afterwards.
        paused_at = await actor.pause()
        return await self._paused(replace(actor.machine.record, paused_at=paused_at), keeps_memory=True)

    async def resume_sandbox(self, request: StartSandbox) -> NodeSandbox:
        resumed = await self._ask_machine(request.sandbox_id, lambda entry: self._resume_here(entry, request))
        if resumed is not None:
            return resumed
        record = self._kept.require(request.sandbox_id)
        source = await self._kept.source(record, keep_memory=request.keep_memory)
        again = self._living(request.sandbox_id)
        if again is None and self._kept.get(request.sandbox_id) is not record:
            # It was killed, or had another turn meanwhile: look again.
            return await self.resume_sandbox(request)
        # Memory fits only the limits that it was saved under.
        limits = record.limits if source.memory else replace(request.limits, disk_mib=record.limits.disk_mib)
        request = replace(request, build_id=record.build_id, runtime=record.runtime, limits=limits)
        return await asyncio.shield((again or self._begin(request, source)).answer)

    async def _resume_here(self, entry: _Entry, request: StartSandbox) -> NodeSandbox | None:
        """None: its machine has ended, and what is kept of it is to be started."""
        if entry.actor.state is not ActorState.PAUSED:
            return await asyncio.shield(entry.answer)
        if not request.keep_memory:
            await entry.actor.end_keeping(is_killed=False)
            return None
        sandbox = await entry.actor.resume(request)
        entry.answer = settled(sandbox)
        return sandbox

    async def _ask_machine(
        self, sandbox_id: SandboxId, ask: Callable[[_Entry], Coroutine[Any, Any, Answer | None]]
    ) -> Answer | None:
        """What a sandbox's machine answers; None when it has none (any more) and what is kept of it counts. A paused
        machine may end of itself at any time, leaving its files: whoever asked it meanwhile is not refused."""
        entry = self._living(sandbox_id)
        if entry is None:
            return None
        if not entry.actor.leaves_files:
            try:
                return await ask(entry)
            except FirebrickError:
                if not entry.actor.leaves_files or entry.is_killed:
                    raise
        await entry.actor.kept()
        return None

    async def discard_sandbox(self, sandbox_id: SandboxId) -> bool:
        entry = self._living(sandbox_id)
        if entry is not None and not self._is_at_rest(sandbox_id):
            raise WrongState(f"The sandbox {sandbox_id} runs; kill it.")
        return await self.kill_sandbox(sandbox_id)

    async def snapshot_sandbox(
        self, sandbox_id: SandboxId, snapshot_id: SnapshotId, *, keep_memory: bool
    ) -> NodeSnapshot:
        if self._capacity().disk_mib == 0:
            raise DiskFull("The disk of this node is nearly full; it saves nothing until space is freed there.")

        async def of_machine(entry: _Entry) -> NodeSnapshot:
            capture = partial(entry.actor.capture, keep_memory=keep_memory)
            return await self._snapshots.make(snapshot_id, entry.actor.machine.record, capture)

        taken = await self._ask_machine(sandbox_id, of_machine)
        if taken is not None:
            return taken
        record = self._kept.require(sandbox_id)
        return await self._snapshots.make(
            snapshot_id, record, partial(self._kept.capture, record, keep_memory=keep_memory)
        )

    async def delete_snapshot(self, snapshot_id: SnapshotId) -> bool:
        return await self._snapshots.delete(snapshot_id)

    async def list_snapshots(self) -> tuple[NodeSnapshot, ...]:
        return self._snapshots.list()

    def export_snapshot(self, snapshot_id: SnapshotId) -> AsyncIterator[bytes]:
        return self._snapshots.give(snapshot_id)

    async def import_snapshot(self, wanted: ImportSnapshot, parts: AsyncIterator[bytes]) -> ImportedSnapshot:
        return await self._snapshots.take_in(wanted, parts)

    async def kill_sandbox(self, sandbox_id: SandboxId, *, keep_disk: bool = False) -> bool:
        entry = self._living(sandbox_id)
        if entry is None:
            record = self._kept.get(sandbox_id)
            if record is None or not keep_disk:
                return await self._kept.remove(sandbox_id)
            record = await self._kept.drop_memory(record)
            self._kept.change(replace(record, is_killed=True))
            return True
        if keep_disk:
            if entry.actor.leaves_files:
                await entry.actor.kept()
                return await self.kill_sandbox(sandbox_id, keep_disk=True)
            try:
                await entry.actor.end_keeping(is_killed=True)
                return True
            except FirebrickError as exc:
                # The end is what was asked for; what its disk needed was not to be had.
                log.warning("sandbox.disk_lost", sandbox_id=sandbox_id, reason=exc.message, detail=exc.detail)
        entry.is_killed = True
        entry.actor.begin_kill()
        await entry.actor.gone()
        if entry.actor.machine.record.state is MachineState.KEPT:
            await entry.actor.kept()
            await self._kept.remove(sandbox_id)
        return True

    async def list_sandboxes(self) -> tuple[NodeSandbox, ...]:
        living = {item: entry.actor.describe() for item, entry in self._entries.items()}
        here = tuple(sandbox for sandbox in living.values() if sandbox is not None)
        listed = {sandbox.sandbox_id for sandbox in here}
        return here + tuple(sandbox for sandbox in self._kept.sandboxes() if sandbox.sandbox_id not in listed)

    async def update_network(self, sandbox_id: SandboxId, egress: Egress) -> None:
        entry = self._living(sandbox_id)
        if entry is None or entry.actor.leaves_files:
            raise NotFound(f"The sandbox {sandbox_id} does not run on this node.")
        await self._drivers.slots.restrict(entry.actor.machine.slot, egress)

    async def read_usage(self, sandbox_id: SandboxId) -> SandboxUsage:
        entry = self._living(sandbox_id)
        if entry is None:
            raise NotFound(f"The sandbox {sandbox_id} does not run on this node.")
        return await entry.actor.usage()

    async def read_logs(self, sandbox_id: SandboxId, *, start_ms: int, limit: int) -> tuple[LogEntry, ...]:
        entries = await asyncio.to_thread(self._ended_logs.read, sandbox_id)
        if (entry := self._entries.get(sandbox_id)) is not None:
            # What a former machine of it said, before a pause that kept its disk only, comes first.
            entries = merge(entries, await entry.actor.log.entries())
        return select(entries, start_ms=start_ms, limit=limit)

    def watch_exits(self) -> AsyncIterator[SandboxExit]:
        return self._notices.watch_exits()

    # How it is done

    def _living(self, sandbox_id: SandboxId) -> _Entry | None:
        """Its entry as long as its machine runs, or its files are about to be kept."""
        entry = self._entries.get(sandbox_id)
        return None if entry is None or (entry.actor.is_gone and not entry.actor.leaves_files) else entry

    def _is_at_rest(self, sandbox_id: SandboxId) -> bool:
        entry = self._living(sandbox_id)
        if entry is None:
            return self._kept.get(sandbox_id) is not None
        return entry.actor.state is ActorState.PAUSED or entry.actor.leaves_files

    async def _paused(self, record: MachineRecord, *, keeps_memory: bool) -> PausedSandbox:
        assert record.sandbox_id is not None
        assert record.paused_at is not None
        return PausedSandbox(
            sandbox_id=record.sandbox_id,
            machine_id=record.machine_id,
            keeps_memory=keeps_memory,
            paused_at=record.paused_at,
            disk_bytes=await self._kept.disk_bytes(record),
            is_silent=record.is_silent,
        )

    def _begin(self, request: StartSandbox, source: DiskSource | None = None) -> _Entry:
        """Everything here is synchronous: between looking for an entry and making it, nobody else comes by."""
        if not self._is_open:
            raise Unavailable("This node is stopping.")
        key = self._key(request)
        self._drivers.images.image(key.build_id)
        # NOTE: what takes its kept disk over needs no other, and running it can free space.
        if self._capacity().disk_mib == 0 and not (source is not None and source.shares):
            raise DiskFull("The disk of this node is nearly full; it takes no new sandbox until space is freed there.")
        # NOTE: a warm machine has a disk already; but where machines write inside, its agent can write to that.
        actor = self._pool.take(key) if source is None or self._writes_inside(key.runtime) else None
        if actor is not None:
            actor.claim(request, source)
        else:
            self._pool.make_room()
            actor = self._start_actor(key, request, source or self._memories.source(key))
        answer = asyncio.get_running_loop().create_future()
        entry = _Entry(request=request, actor=actor, answer=answer, source=source)
        # Nobody need be waiting when it fails.
        entry.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        self._entries[request.sandbox_id] = entry
        return entry

    def _actor_settled(self, actor: SandboxActor, outcome: NodeSandbox | FirebrickError) -> None:
        """Pass the answer on; but a warm machine that went bad is no reason to fail the sandbox, nor is a template's
        memory that one does not go on from: then it boots."""
        self._pool.touch()
        entry = self._entry_of(actor)
        if entry is None or entry.answer.done():
            return
        if isinstance(outcome, NodeSandbox):
            if (former := self._kept.release(outcome.sandbox_id)) is not None:
                self._background.start(self._kept.forget(former), name=f"forget {former.machine_id}")
            entry.answer.set_result(outcome)
        elif entry.request and actor.is_replaceable and not entry.is_killed and self._is_open:
            log.warning("machine.replaced", machine_id=actor.machine.machine_id, message=outcome.message)
            entry.actor = self._start_actor(self._key(entry.request), entry.request, entry.source)
        elif not self._is_open:
            entry.answer.set_exception(Unavailable("This node is stopping; nothing is left of the start."))
        else:
            entry.answer.set_exception(outcome)

    def _writes_inside(self, name: RuntimeName) -> bool:
        return Capability.WRITES_INSIDE in self._drivers.runtimes[name].capabilities

    def _key(self, request: StartSandbox) -> WarmKey:
        if not self._settings.offered:
            raise Unavailable("No runtime works on this node; `firebrick doctor` tells why.")
        runtime = request.runtime or self._settings.offered[0]
        if runtime not in self._settings.offered:
            raise Invalid(f"This node does not offer the runtime '{runtime}'.")
        return WarmKey(build_id=request.build_id, runtime=RuntimeName(runtime), limits=request.limits)

    def _start_warm(self, key: WarmKey) -> SandboxActor:
        return self._start_actor(key, None, self._memories.source(key))

    def _start_actor(
        self, key: WarmKey, request: StartSandbox | None, source: DiskSource | None = None
    ) -> SandboxActor:
        record = MachineRecord(
            machine_id=new_machine_id(),
            build_id=key.build_id,
            runtime=key.runtime,
            limits=key.limits,
            state=MachineState.STARTING,
            control_token=secrets.token_hex(16),
            sandbox_id=request.sandbox_id if request else None,
        )
        return self._own(record, request, adopt=False, source=source)

    def _adopt(self, record: MachineRecord) -> None:
        actor = self._own(record, None, adopt=True)
        sandbox = actor.describe()
        if sandbox is not None:
            entry = _Entry(request=None, actor=actor, answer=settled(sandbox))
            self._entries[sandbox.sandbox_id] = entry

    def _own(
        self, record: MachineRecord, request: StartSandbox | None, *, adopt: bool, source: DiskSource | None = None
    ) -> SandboxActor:
        actor = SandboxActor(
            Machine(record, self._drivers, self._settings, self._records, source=source),
            self._drivers,
            gate=self._gate,
            saves=self._saves,
            memories=self._memories,
            ended_logs=self._ended_logs,
            hooks=self._hooks,
            request=request,
        )
        if adopt:
            # Before anything new is written to it.
            actor.log.restore()
        self._actors[record.machine_id] = actor
        self._tasks.start(actor.run(adopt=adopt), name=f"machine {record.machine_id}")
        return actor

    def _actor_changed(self, actor: SandboxActor) -> None:
        if actor.machine.is_from_template and actor.state in (ActorState.WARM, ActorState.CLAIMED):
            self._memories.trust(actor.machine)
        elif actor.state is ActorState.ENDING and actor.could_not_go_on:
            self._memories.distrust(actor.machine)
        if actor.state is ActorState.ENDED:
            self._actors.pop(actor.machine.machine_id, None)
            if actor.sandbox_id is not None and self._entry_of(actor) is not None:
                del self._entries[actor.sandbox_id]
        self._pool.poke()

    def _actor_kept(self, actor: SandboxActor) -> None:
        self._kept.add(actor.machine.record)

    def _entry_of(self, actor: SandboxActor) -> _Entry | None:
        """The entry that this actor serves; None when it serves nobody or was replaced."""
        entry = self._entries.get(actor.sandbox_id) if actor.sandbox_id else None
        return entry if entry is not None and entry.actor is actor else None

    def _capacity(self) -> Capacity:
        return capacity_of(
            read_facts(self._settings.node_dir),
            cpu_overcommit=self._settings.cpu_overcommit,
            memory_overcommit=self._settings.memory_overcommit,
        )


def settled(sandbox: NodeSandbox) -> "asyncio.Future[NodeSandbox]":
    """The answer of a start that is done."""
    answer: asyncio.Future[NodeSandbox] = asyncio.get_running_loop().create_future()
    answer.set_result(sandbox)
    return answer
