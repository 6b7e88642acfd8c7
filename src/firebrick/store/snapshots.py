"""Rows of snapshots, and the rows of `templates` that stand for them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, exists, false, insert, literal, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.errors import Conflict
from firebrick.model.ids import BuildId, NodeId, SandboxId, SnapshotId, TeamId, TemplateId
from firebrick.model.machine import Limits, RuntimeName
from firebrick.model.sandbox import SandboxState
from firebrick.model.snapshot import Snapshot, SnapshotState
from firebrick.store.schema import UtcTime, sandboxes, snapshots, templates


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFilter:
    """Which of a team's snapshots; newest first, those after (`created_at`, `snapshot_id`) if that is given."""

    team_id: TeamId
    source_id: SandboxId | None = None
    names: frozenset[str] | None = None
    tag: str | None = None
    after: tuple[datetime, str] | None = None
    limit: int = 100


def _snapshot(row: Row[Any]) -> Snapshot:
    return Snapshot(
        snapshot_id=SnapshotId(row.snapshot_id),
        template_id=TemplateId(row.template_id),
        team_id=TeamId(row.team_id),
        state=SnapshotState(row.state),
        tag=row.tag,
        name=row.name,
        build_id=BuildId(row.build_id),
        source_id=SandboxId(row.source_id),
        node_id=NodeId(row.node_id),
        runtime=None if row.runtime is None else RuntimeName(row.runtime),
        limits=Limits(
            millicpu=row.millicpu,
            memory_mib=row.memory_mib,
            disk_mib=row.disk_mib,
            process_count=row.process_count,
        ),
        keeps_memory=row.keeps_memory,
        is_private=row.is_private,
        disk_bytes=row.disk_bytes,
        stored_bytes=row.stored_bytes,
        created_at=row.created_at,
    )


def _values(snapshot: Snapshot) -> dict[str, Any]:
    limits = snapshot.limits
    return {
        "snapshot_id": snapshot.snapshot_id,
        "template_id": snapshot.template_id,
        "team_id": snapshot.team_id,
        "state": snapshot.state.value,
        "tag": snapshot.tag,
        "name": snapshot.name,
        "build_id": snapshot.build_id,
        "source_id": snapshot.source_id,
        "node_id": snapshot.node_id,
        "runtime": None if snapshot.runtime is None else snapshot.runtime.value,
        "millicpu": limits.millicpu,
        "memory_mib": limits.memory_mib,
        "disk_mib": limits.disk_mib,
        "process_count": limits.process_count,
        "keeps_memory": snapshot.keeps_memory,
        "is_private": snapshot.is_private,
        "disk_bytes": snapshot.disk_bytes,
        "stored_bytes": snapshot.stored_bytes,
        "created_at": snapshot.created_at,
    }


async def snapshot_insert(tx: AsyncConnection, snapshot: Snapshot) -> None:
    await tx.execute(insert(snapshots).values(**_values(snapshot)))


async def snapshot_fetch(tx: AsyncConnection, snapshot_id: SnapshotId) -> Snapshot | None:
    row = (await tx.execute(select(snapshots).where(snapshots.c.snapshot_id == snapshot_id))).one_or_none()
    return None if row is None else _snapshot(row)


async def snapshot_fetch_ready(tx: AsyncConnection, template_id: TemplateId, tag: str) -> Snapshot | None:
    """The newest ready one that this tag of the template means."""
    query = (
        select(snapshots)
        .where(
            snapshots.c.template_id == template_id,
            snapshots.c.tag == tag,
            snapshots.c.state == SnapshotState.READY.value,
        )
        .order_by(snapshots.c.created_at.desc())
        .limit(1)
    )
    row = (await tx.execute(query)).one_or_none()
    return None if row is None else _snapshot(row)


async def snapshot_confirm(tx: AsyncConnection, snapshot: Snapshot) -> None:
    """Write what is known of it now: it is ready, and takes the tag from the one that had it.

    Raises: Conflict — it is not being created any more.
    """
    changed = await tx.execute(
        update(snapshots)
        .where(snapshots.c.snapshot_id == snapshot.snapshot_id, snapshots.c.state != SnapshotState.DELETING.value)
        .values(**_values(snapshot))
    )
    if changed.rowcount == 0:
        raise Conflict("The snapshot was deleted while it was taken. Try again.")
    await tx.execute(
        update(snapshots)
        .where(
            snapshots.c.template_id == snapshot.template_id,
            snapshots.c.tag == snapshot.tag,
            snapshots.c.state == SnapshotState.READY.value,
            snapshots.c.snapshot_id != snapshot.snapshot_id,
        )
        .values(state=SnapshotState.DELETING.value)
    )


async def snapshot_mark_deleting(tx: AsyncConnection, ids: Iterable[SnapshotId]) -> int:
    """Nobody can use them from now on; returns how many were not marked before."""
    changed = await tx.execute(
        update(snapshots)
        .where(snapshots.c.snapshot_id.in_(list(ids)), snapshots.c.state != SnapshotState.DELETING.value)
        .values(state=SnapshotState.DELETING.value)
    )
    return int(changed.rowcount)


async def snapshot_delete(tx: AsyncConnection, snapshot_id: SnapshotId) -> None:
    """Forget it, and the template that stood for it when nothing refers to that any more. Idempotent."""
    template_id = (
        await tx.execute(select(snapshots.c.template_id).where(snapshots.c.snapshot_id == snapshot_id))
    ).scalar_one_or_none()
    if template_id is None:
        return
    await tx.execute(delete(snapshots).where(snapshots.c.snapshot_id == snapshot_id))
    await template_delete_unused(tx)


async def template_delete_unused(tx: AsyncConnection) -> None:
    """Forget templates of snapshots that are gone, once no sandbox that is remembered came from them."""
    await tx.execute(
        delete(templates).where(
            templates.c.is_snapshot,
            ~exists().where(snapshots.c.template_id == templates.c.template_id),
            ~exists().where(sandboxes.c.template_id == templates.c.template_id),
        )
    )


async def snapshot_list(tx: AsyncConnection, wanted: SnapshotFilter) -> tuple[Snapshot, ...]:
    """Ready ones that are shown, newest first; one more than `limit` if there are more."""
    query = select(snapshots).where(
        snapshots.c.team_id == wanted.team_id,
        snapshots.c.state == SnapshotState.READY.value,
        snapshots.c.is_private == false(),
    )
    if wanted.source_id is not None:
        query = query.where(snapshots.c.source_id == wanted.source_id)
    if wanted.names is not None:
        query = query.where(or_(snapshots.c.name.in_(wanted.names), snapshots.c.template_id.in_(wanted.names)))
    if wanted.tag is not None:
        query = query.where(snapshots.c.tag == wanted.tag)
    if wanted.after is not None:
        last = tuple_(literal(wanted.after[0], UtcTime), literal(wanted.after[1]))
        query = query.where(tuple_(snapshots.c.created_at, snapshots.c.snapshot_id) < last)
    query = query.order_by(snapshots.c.created_at.desc(), snapshots.c.snapshot_id.desc()).limit(wanted.limit + 1)
    return tuple(_snapshot(row) for row in await tx.execute(query))


async def snapshot_list_of(tx: AsyncConnection, template_id: TemplateId) -> tuple[Snapshot, ...]:
    """Every one that the template stands for, whatever its state."""
    query = select(snapshots).where(snapshots.c.template_id == template_id)
    return tuple(_snapshot(row) for row in await tx.execute(query))


async def snapshot_list_all(tx: AsyncConnection) -> tuple[Snapshot, ...]:
    """Of every team, whatever its state."""
    return tuple(_snapshot(row) for row in await tx.execute(select(snapshots)))


async def snapshot_list_unfinished(tx: AsyncConnection) -> tuple[Snapshot, ...]:
    """Of every team: those being created or deleted, and private ones, which live as long as their fork."""
    query = select(snapshots).where(or_(snapshots.c.state != SnapshotState.READY.value, snapshots.c.is_private))
    return tuple(_snapshot(row) for row in await tx.execute(query))


async def snapshot_set_stored(tx: AsyncConnection, sizes: Mapping[SnapshotId, int]) -> None:
    """Note what the chunks of each added to the store, where it is not known yet."""
    for snapshot_id, stored_bytes in sizes.items():
        await tx.execute(
            update(snapshots)
            .where(snapshots.c.snapshot_id == snapshot_id, snapshots.c.stored_bytes.is_(None))
            .values(stored_bytes=stored_bytes)
        )


async def snapshot_list_known(tx: AsyncConnection, ids: Iterable[SnapshotId]) -> frozenset[SnapshotId]:
    """Those of the ids that have a row."""
    query = select(snapshots.c.snapshot_id).where(snapshots.c.snapshot_id.in_(list(ids)))
    return frozenset(SnapshotId(row[0]) for row in await tx.execute(query))


async def template_is_used(tx: AsyncConnection, template_id: TemplateId) -> bool:
    """True while a sandbox of it is being created: it still needs what the snapshot holds."""
    query = (
        select(sandboxes.c.sandbox_id)
        .where(sandboxes.c.template_id == template_id, sandboxes.c.state == SandboxState.CREATING.value)
        .limit(1)
    )
    return (await tx.execute(query)).first() is not None
