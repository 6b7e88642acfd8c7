"""What a team holds, and the refusal of more, inside the transaction that would take it."""

from datetime import datetime

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.lifecycle.quota import DISK_IS_FULL, over_quota, take_create
from firebrick.lifecycle.sandbox_machine import holds_quota
from firebrick.model.errors import LimitExceeded, RateExceeded, Unauthenticated
from firebrick.model.ids import TeamId
from firebrick.model.machine import Limits
from firebrick.model.sandbox import SandboxState
from firebrick.model.team import Team, TeamUse
from firebrick.store.schema import reservations, sandboxes, snapshots, teams
from firebrick.store.teams import team_from_row

MIB = 1 << 20
_COUNT = (
    select(func.count())
    .select_from(sandboxes)
    .where(
        sandboxes.c.team_id == bindparam("wanted_id"),
        sandboxes.c.state.in_([state.value for state in SandboxState if holds_quota(state)]),
    )
)
_SUMS = (
    select(
        *(
            func.coalesce(func.sum(reservations.c[name]), 0)
            for name in ("millicpu", "memory_mib", "disk_mib", "saved_mib")
        )
    )
    .join(sandboxes, sandboxes.c.sandbox_id == reservations.c.sandbox_id)
    .where(sandboxes.c.team_id == bindparam("wanted_id"))
)
_SNAPSHOT_BYTES = select(func.coalesce(func.sum(snapshots.c.disk_bytes), 0)).where(
    snapshots.c.team_id == bindparam("wanted_id"), snapshots.c.is_private.is_(False)
)
_LOCK = select(teams).where(teams.c.team_id == bindparam("wanted_id")).with_for_update()


async def quota_check(
    tx: AsyncConnection, team_id: TeamId, wanted: Limits, *, now: datetime, is_create: bool = True
) -> None:
    """Refuse what would exceed the team's quota. Keeps the team locked until the transaction ends, so nothing that is
    inserted in it can break a limit.

    Args:
        wanted: what is going to be reserved beside what the team has.
        is_create: also spend one of the team's creates per second; False for a resume.

    Raises: LimitExceeded — final until something ends. RateExceeded — passes within a second.
    """
    row = (await tx.execute(_LOCK, {"wanted_id": team_id})).one_or_none()
    if row is None:
        raise Unauthenticated("The team of this API key no longer exists.")
    team = team_from_row(row)
    why = over_quota(team, await team_use(tx, team), wanted)
    if why is not None:
        raise LimitExceeded(f"{why}. Kill one, or ask the operator to raise the team's limit.")
    if is_create and team.max_creates_per_s:
        left = take_create(row.create_allowance, row.create_allowance_at, rate=team.max_creates_per_s, now=now)
        if left is None:
            raise RateExceeded(
                f"you create sandboxes faster than your team may ({team.max_creates_per_s:g} per second). "
                "Try again in a moment."
            )
        changed = update(teams).where(teams.c.team_id == team_id)
        await tx.execute(changed.values(create_allowance=left, create_allowance_at=now))


async def team_use(tx: AsyncConnection, team: Team) -> TeamUse:
    """What the team's sandboxes hold now. Sums are read only where a limit asks for them: they cost a scan."""
    count = (await tx.execute(_COUNT, {"wanted_id": team.team_id})).scalar_one()
    if not (team.max_millicpu or team.max_memory_mib or team.max_disk_mib):
        return TeamUse(sandbox_count=int(count), millicpu=0, memory_mib=0, disk_mib=0)
    sums = (await tx.execute(_SUMS, {"wanted_id": team.team_id})).one()
    disk_mib = int(sums[2]) + int(sums[3])
    if team.max_disk_mib:
        disk_mib += -(-int((await tx.execute(_SNAPSHOT_BYTES, {"wanted_id": team.team_id})).scalar_one()) // MIB)
    return TeamUse(sandbox_count=int(count), millicpu=int(sums[0]), memory_mib=int(sums[1]), disk_mib=disk_mib)


async def quota_check_snapshot(tx: AsyncConnection, team_id: TeamId, *, more_bytes: int = 0) -> None:
    """Refuse a snapshot of a team whose disk quota is used up by sandboxes and snapshots, or would be by `more_bytes`;
    how large a new one becomes is not known before it is taken. Raises LimitExceeded."""
    row = (await tx.execute(_LOCK, {"wanted_id": team_id})).one_or_none()
    if row is None or not (team := team_from_row(row)).max_disk_mib:
        return
    use = await team_use(tx, team)
    more_mib = -(-more_bytes // MIB)
    if use.disk_mib >= team.max_disk_mib or use.disk_mib + more_mib > team.max_disk_mib:
        more = f", {more_mib} more asked" if more_mib else ""
        raise LimitExceeded(
            f"you have reached your team's {DISK_IS_FULL}: {use.disk_mib} of {team.max_disk_mib} MiB in use by "
            f"sandboxes and snapshots{more}. Delete some, or ask the operator to raise the team's limit."
        )
