"""Rows of sandboxes. Every change carries the generation it was decided on; a stale one is refused."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.lifecycle.sandbox_machine import is_visible
from firebrick.model.errors import Conflict
from firebrick.model.ids import BuildId, MachineId, NodeId, SandboxId, SnapshotId, TeamId, TemplateId
from firebrick.model.machine import Limits, RuntimeName
from firebrick.model.sandbox import EndReason, OnTimeout, Sandbox, SandboxState
from firebrick.store.metadata import metadata_insert
from firebrick.store.schema import reservations, sandboxes

_STATES = {state.value: state for state in SandboxState}
_RUNTIMES = {runtime.value: runtime for runtime in RuntimeName}
_ON_TIMEOUT = {action.value: action for action in OnTimeout}
_FETCH = select(sandboxes).where(sandboxes.c.sandbox_id == bindparam("wanted_id"))
_INSERT = insert(sandboxes)


def sandbox_from_row(row: Row[Any]) -> Sandbox:
    """Positional on purpose: a list of 100 rows spends most of its time here. The order is the table's."""
    values: Any = tuple(row)
    (
        sandbox_id, team_id, template_id, build_id, state, _is_listed, generation,
        millicpu, memory_mib, disk_mib, process_count,
        created_at, started_at, expires_at, timeout_s, template_alias, metadata, env, secure,
        runtime, node_id, machine_id, address, allow_internet_access, ended_at, end_reason, end_detail,
        on_timeout, auto_pause_memory, auto_resume, idle_timeout_s, paused_at, keeps_memory, recoverable_until,
        snapshot_id, network, silent_at_pause,
    ) = values  # fmt: skip
    return Sandbox(
        sandbox_id=SandboxId(sandbox_id),
        team_id=TeamId(team_id),
        template_id=TemplateId(template_id),
        build_id=BuildId(build_id),
        state=_STATES[state],
        generation=generation,
        limits=Limits(millicpu=millicpu, memory_mib=memory_mib, disk_mib=disk_mib, process_count=process_count),
        created_at=created_at,
        started_at=started_at,
        expires_at=expires_at,
        timeout_s=timeout_s,
        template_alias=template_alias,
        metadata=metadata,
        env=env,
        secure=secure,
        runtime=None if runtime is None else _RUNTIMES[runtime],
        node_id=None if node_id is None else NodeId(node_id),
        machine_id=None if machine_id is None else MachineId(machine_id),
        address=address,
        allow_internet_access=allow_internet_access,
        ended_at=ended_at,
        end_reason=None if end_reason is None else EndReason(end_reason),
        end_detail=end_detail,
        on_timeout=_ON_TIMEOUT[on_timeout],
        auto_pause_memory=auto_pause_memory,
        auto_resume=auto_resume,
        idle_timeout_s=idle_timeout_s,
        paused_at=paused_at,
        keeps_memory=keeps_memory,
        recoverable_until=recoverable_until,
        snapshot_id=None if snapshot_id is None else SnapshotId(snapshot_id),
        network=network,
        silent_at_pause=bool(silent_at_pause),
    )


def _changeable(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "state": sandbox.state.value,
        "is_listed": is_visible(sandbox.state),
        "generation": sandbox.generation,
        "started_at": sandbox.started_at,
        "expires_at": sandbox.expires_at,
        "timeout_s": sandbox.timeout_s,
        "on_timeout": sandbox.on_timeout.value,
        "runtime": None if sandbox.runtime is None else sandbox.runtime.value,
        "node_id": sandbox.node_id,
        "machine_id": sandbox.machine_id,
        "address": sandbox.address,
        "ended_at": sandbox.ended_at,
        "end_reason": None if sandbox.end_reason is None else sandbox.end_reason.value,
        "end_detail": sandbox.end_detail,
        "paused_at": sandbox.paused_at,
        "keeps_memory": sandbox.keeps_memory,
        "silent_at_pause": sandbox.silent_at_pause,
        "recoverable_until": sandbox.recoverable_until,
        "allow_internet_access": sandbox.allow_internet_access,
        "network": sandbox.network,
    }


async def sandbox_insert(tx: AsyncConnection, sandbox: Sandbox) -> None:
    limits = sandbox.limits
    values: dict[str, Any] = dict(
        sandbox_id=sandbox.sandbox_id,
        team_id=sandbox.team_id,
        template_id=sandbox.template_id,
        build_id=sandbox.build_id,
        millicpu=limits.millicpu,
        memory_mib=limits.memory_mib,
        disk_mib=limits.disk_mib,
        process_count=limits.process_count,
        created_at=sandbox.created_at,
        template_alias=sandbox.template_alias,
        metadata=sandbox.metadata,
        env=sandbox.env,
        secure=sandbox.secure,
        auto_pause_memory=sandbox.auto_pause_memory,
        auto_resume=sandbox.auto_resume,
        idle_timeout_s=sandbox.idle_timeout_s,
        snapshot_id=sandbox.snapshot_id,
        **_changeable(sandbox),
    )
    await tx.execute(_INSERT, values)
    await metadata_insert(tx, team_id=sandbox.team_id, sandbox_id=sandbox.sandbox_id, pairs=sandbox.metadata)


async def sandbox_fetch(tx: AsyncConnection, sandbox_id: SandboxId) -> Sandbox | None:
    row = (await tx.execute(_FETCH, {"wanted_id": sandbox_id})).one_or_none()
    return None if row is None else sandbox_from_row(row)


async def sandbox_update_if(tx: AsyncConnection, sandbox: Sandbox) -> Sandbox:
    """Write `sandbox` if its generation is still the stored one, and return it with the next generation.

    Raises: Conflict — somebody changed the row since it was read.
    """
    changed = replace(sandbox, generation=sandbox.generation + 1)
    result = await tx.execute(
        update(sandboxes)
        .where(sandboxes.c.sandbox_id == sandbox.sandbox_id, sandboxes.c.generation == sandbox.generation)
        .values(**_changeable(changed))
    )
    if result.rowcount == 0:
        raise Conflict(f"Sandbox {sandbox.sandbox_id} changed meanwhile. Try again.")
    return changed


async def sandbox_list_in_states(tx: AsyncConnection, states: Iterable[SandboxState]) -> tuple[Sandbox, ...]:
    """Of every team, oldest first."""
    wanted = [state.value for state in states]
    query = select(sandboxes).where(sandboxes.c.state.in_(wanted)).order_by(sandboxes.c.created_at)
    return tuple(sandbox_from_row(row) for row in await tx.execute(query))


async def sandbox_list_due(tx: AsyncConnection, now: datetime, *, limit: int) -> tuple[Sandbox, ...]:
    """Running ones whose time is over, longest overdue first."""
    query = (
        select(sandboxes)
        .where(sandboxes.c.state == SandboxState.RUNNING.value, sandboxes.c.expires_at <= now)
        .order_by(sandboxes.c.expires_at)
        .limit(limit)
    )
    return tuple(sandbox_from_row(row) for row in await tx.execute(query))


async def sandbox_list_bin(tx: AsyncConnection) -> tuple[Sandbox, ...]:
    """Ended ones that still hold a reservation: what the grace bin holds, the first to leave it first."""
    query = (
        select(sandboxes)
        .join(reservations, reservations.c.sandbox_id == sandboxes.c.sandbox_id)
        .where(sandboxes.c.state == SandboxState.ENDED.value)
        .order_by(sandboxes.c.ended_at)
    )
    return tuple(sandbox_from_row(row) for row in await tx.execute(query))


async def sandbox_fetch_many(tx: AsyncConnection, ids: Iterable[SandboxId]) -> dict[SandboxId, Sandbox]:
    """Those of the ids that are known."""
    query = select(sandboxes).where(sandboxes.c.sandbox_id.in_(list(ids)))
    return {sandbox.sandbox_id: sandbox for row in await tx.execute(query) if (sandbox := sandbox_from_row(row))}


async def sandbox_next_due(tx: AsyncConnection) -> datetime | None:
    """When the next running sandbox expires; None when none runs."""
    query = (
        select(sandboxes.c.expires_at)
        .where(sandboxes.c.state == SandboxState.RUNNING.value)
        .order_by(sandboxes.c.expires_at)
        .limit(1)
    )
    return (await tx.execute(query)).scalar_one_or_none()


async def sandbox_list_states(tx: AsyncConnection, ids: Iterable[SandboxId]) -> dict[SandboxId, SandboxState]:
    """The state of each known id; unknown ids are absent."""
    query = select(sandboxes.c.sandbox_id, sandboxes.c.state).where(sandboxes.c.sandbox_id.in_(list(ids)))
    return {SandboxId(row.sandbox_id): _STATES[row.state] for row in await tx.execute(query)}


async def sandbox_count_by_state(tx: AsyncConnection) -> dict[SandboxState, int]:
    query = (
        select(sandboxes.c.state, func.count())
        .where(sandboxes.c.state != SandboxState.ENDED.value)
        .group_by(sandboxes.c.state)
    )
    return {_STATES[row[0]]: int(row[1]) for row in await tx.execute(query)}


async def sandbox_count_by_team(tx: AsyncConnection, state: SandboxState) -> dict[TeamId, int]:
    """How many sandboxes of each team are in that state; teams without any are absent."""
    query = select(sandboxes.c.team_id, func.count()).where(sandboxes.c.state == state.value)
    return {TeamId(row[0]): int(row[1]) for row in await tx.execute(query.group_by(sandboxes.c.team_id))}


async def sandbox_count_by_node(tx: AsyncConnection) -> dict[NodeId, int]:
    """How many sandboxes that have not ended each node has."""
    query = select(sandboxes.c.node_id, func.count()).where(sandboxes.c.state != SandboxState.ENDED.value)
    return {NodeId(row[0]): int(row[1]) for row in await tx.execute(query.group_by(sandboxes.c.node_id)) if row[0]}


async def sandbox_list_of_team(tx: AsyncConnection, team_id: TeamId) -> tuple[Sandbox, ...]:
    """All that have not ended, oldest first."""
    query = select(sandboxes).where(
        sandboxes.c.team_id == team_id, sandboxes.c.state.not_in([SandboxState.ENDING.value, SandboxState.ENDED.value])
    )
    return tuple(sandbox_from_row(row) for row in await tx.execute(query.order_by(sandboxes.c.created_at)))


async def sandbox_count_by_template(tx: AsyncConnection) -> dict[TemplateId, tuple[int, datetime]]:
    """How many sandboxes of each template are known, ended ones too, and when the last was started."""
    query = select(sandboxes.c.template_id, func.count(), func.max(sandboxes.c.started_at)).group_by(
        sandboxes.c.template_id
    )
    return {TemplateId(row[0]): (int(row[1]), row[2]) for row in await tx.execute(query)}


async def sandbox_delete_ended_before(tx: AsyncConnection, before: datetime) -> int:
    """Forget sandboxes that ended before that time; returns how many."""
    result = await tx.execute(
        delete(sandboxes).where(
            sandboxes.c.state == SandboxState.ENDED.value,
            sandboxes.c.ended_at < before,
            # What lies in the grace bin still holds a reservation, which would be forgotten with the row.
            sandboxes.c.sandbox_id.not_in(select(reservations.c.sandbox_id)),
        )
    )
    return int(result.rowcount)
