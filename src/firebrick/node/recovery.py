"""What a restart does with what the process before it left, after a kill -9 at any moment.

    records + running machines ──decide──▶ adopt (it was promised and it runs) | keep (its disk was promised) | end

Everything is found by machine id: the records name them, and each driver's `recover` finds its own by name.
Machines are destroyed before the network and the disk are swept, so nothing is taken from under a guest.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from firebrick.log import get_log
from firebrick.model.errors import FirebrickError, Internal
from firebrick.model.ids import MachineId
from firebrick.model.machine import RuntimeName
from firebrick.node.drivers import NodeDrivers
from firebrick.node.records import MachineRecord, MachineRecords, MachineState, StoredRecords
from firebrick.node.saved_memory import drop_memory, keeper_of, store_memory
from firebrick.runtimes.base import Capability

log = get_log("node")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPlan:
    """`adopt` live on. Of `keep` the disk stays, whatever still runs of them is ended. `end` is everything else of
    ours: what runs without a promise, what is promised but does not run, what was half made or half removed; each with
    the runtime that may know it (None: any may)."""

    adopt: tuple[MachineRecord, ...]
    keep: tuple[MachineRecord, ...]
    end: Mapping[MachineId, RuntimeName | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """`resisting` machines could not be destroyed: they keep slot and rootfs, and someone must go on trying."""

    adopt: tuple[MachineRecord, ...]
    keep: tuple[MachineRecord, ...]
    resisting: tuple[MachineRecord, ...]


def decide_recovery(stored: StoredRecords, running: Mapping[MachineId, RuntimeName]) -> RecoveryPlan:
    """Choose what lives on. A slot or a sandbox that two records claim goes to neither; but a machine that runs is
    what became of a kept disk of its sandbox, and of two disks the one that was kept last is the sandbox's."""
    candidates = [
        record
        for record in stored.readable
        if record.state.is_adopted
        and record.slot_index is not None
        and running.get(record.machine_id) is record.runtime
    ]
    slots = Counter(record.slot_index for record in candidates)
    sandboxes = Counter(record.sandbox_id for record in candidates if record.sandbox_id is not None)
    adopt = tuple(
        record
        for record in candidates
        if slots[record.slot_index] == 1 and (record.sandbox_id is None or sandboxes[record.sandbox_id] == 1)
    )
    adopted = {record.machine_id for record in adopt}
    at_rest = [r for r in stored.readable if r.state.outlives_boot and r.machine_id not in adopted and r.paused_at]
    lives = {record.sandbox_id for record in adopt}
    last = {record.sandbox_id: record for record in sorted(at_rest, key=_paused_at)}
    keep = tuple(record for sandbox_id, record in last.items() if sandbox_id and sandbox_id not in lives)
    adopted |= {record.machine_id for record in keep}
    end: dict[MachineId, RuntimeName | None] = dict.fromkeys(stored.unreadable)
    end |= {record.machine_id: record.runtime for record in stored.readable if record.machine_id not in adopted}
    end |= {machine_id: runtime for machine_id, runtime in running.items() if machine_id not in adopted}
    return RecoveryPlan(adopt=adopt, keep=keep, end=end)


def _paused_at(record: MachineRecord) -> float:
    return record.paused_at.timestamp() if record.paused_at else 0.0


async def recover(drivers: NodeDrivers, records: MachineRecords, *, end_all: bool = False) -> Recovered:
    """Bring disk, machines, rootfs and records into agreement.

    With `end_all` nothing is adopted, and paused ones keep their disks, and their memory where it can be saved.
    Afterwards no machine, rootfs or record is without an owner; the slots of ended machines are swept by `slots.open`,
    which is told who lives. Idempotent; a crash in it is recovered by the next one.
    """
    running: dict[MachineId, RuntimeName] = {}
    for name, runtime in drivers.runtimes.items():
        running |= dict.fromkeys(await runtime.recover(), name)
    stored = records.load_all()
    plan = decide_recovery(stored, running)
    if end_all:
        frozen = tuple(
            [await _leave_memory(drivers, records, record) for record in plan.adopt if record.state.outlives_boot]
        )
        at_rest = {record.machine_id for record in frozen}
        running = {record.machine_id: record.runtime for record in plan.adopt if record.machine_id not in at_rest}
        plan = RecoveryPlan(adopt=(), keep=plan.keep + frozen, end={**plan.end} | running)
    resisting = {machine_id for machine_id, name in plan.end.items() if not await _destroy(drivers, machine_id, name)}
    adopted = frozenset(record.machine_id for record in plan.adopt)
    keep = []
    known = {record.machine_id: record for record in stored.readable}
    for record in plan.keep:
        # NOTE: written before its machine is ended, and its slot forgotten after: a machine that resists still has it.
        kept = known[record.machine_id] = replace(record, state=MachineState.KEPT)
        records.write(kept)
        if not await _destroy(drivers, record.machine_id, record.runtime):
            resisting.add(record.machine_id)
            continue
        keep.append(replace(kept, slot_index=None))
        records.write(keep[-1])
        if not kept.has_memory:
            # Saved, but the machine was gone before its record said so.
            await asyncio.to_thread(drop_memory, records.directory(record.machine_id))
    disks = frozenset(record.machine_id for record in keep if not _writes_inside(drivers, record.runtime))
    await drivers.rootfs.recover(adopted | resisting, disks)
    for machine_id in plan.end:
        if machine_id not in resisting:
            records.remove(machine_id)
    log.info(
        "node.recovered", adopted_count=len(adopted), kept_count=len(keep), ended_count=len(plan.end),
        resisting_count=len(resisting),
    )  # fmt: skip
    return Recovered(
        adopt=plan.adopt,
        keep=tuple(keep),
        resisting=tuple(record for machine_id, record in known.items() if machine_id in resisting),
    )


async def _leave_memory(drivers: NodeDrivers, records: MachineRecords, record: MachineRecord) -> MachineRecord:
    """Save the memory of a frozen machine that is about to be ended, if it can be; its disk is what was promised."""
    runtime = drivers.runtimes.get(record.runtime)
    if runtime is None or keeper_of(runtime) is None or not record.is_held:
        return record
    try:
        return await store_memory(drivers, records, record)
    except FirebrickError as exc:
        log.warning("machine.memory_lost", machine_id=record.machine_id, reason=exc.message, detail=exc.detail)
        return record


def _writes_inside(drivers: NodeDrivers, name: RuntimeName) -> bool:
    return name in drivers.runtimes and Capability.WRITES_INSIDE in drivers.runtimes[name].capabilities


async def _destroy(drivers: NodeDrivers, machine_id: MachineId, name: RuntimeName | None) -> bool:
    """One machine that will not end must not keep the node from serving the others."""
    if name is not None and name not in drivers.runtimes:
        log.error("machine.end_failed", machine_id=machine_id, reason=f"The runtime {name} is no longer installed.")
        return False
    for runtime in [drivers.runtimes[name]] if name is not None else drivers.runtimes.values():
        try:
            await runtime.destroy(machine_id)
        except FirebrickError as exc:
            log.error("machine.end_failed", machine_id=machine_id, reason=exc.message, detail=exc.detail)
            return False
    return True


async def end_everything(drivers: NodeDrivers, records: MachineRecords) -> None:
    """For `firebrick down`, with the agent stopped: no machine, mount, slot or rule of this instance stays. Files do:
    what is paused comes back from its disk, and from its memory where the runtime keeps that in files.

    Raises: Internal when a machine resists; then its slot and its rootfs stay too.
    """
    recovered = await recover(drivers, records, end_all=True)
    if recovered.resisting:
        names = ", ".join(record.machine_id for record in recovered.resisting)
        raise Internal(f"These machines could not be ended: {names}. Run it again; the log of the node tells more.")
    await drivers.slots.destroy_all()
    await drivers.rootfs.close()
    for runtime in drivers.runtimes.values():
        await runtime.close()
