"""Rows of templates and their builds."""

from typing import Any

from sqlalchemy import ColumnElement, Row, false, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.ids import BuildId, TeamId, TemplateId
from firebrick.model.machine import Limits
from firebrick.model.template import Build, BuildState, Template
from firebrick.store.schema import builds, templates


def _template(row: Row[Any]) -> Template:
    return Template(
        template_id=TemplateId(row.template_id),
        alias=row.alias,
        team_id=None if row.team_id is None else TeamId(row.team_id),
        created_at=row.created_at,
        is_snapshot=row.is_snapshot,
    )


def _build(row: Row[Any]) -> Build:
    return Build(
        build_id=BuildId(row.build_id),
        template_id=TemplateId(row.template_id),
        state=BuildState(row.state),
        limits=Limits(
            millicpu=row.millicpu,
            memory_mib=row.memory_mib,
            disk_mib=row.disk_mib,
            process_count=row.process_count,
        ),
        created_at=row.created_at,
    )


def _usable_by(team_id: TeamId) -> ColumnElement[bool]:
    return or_(templates.c.team_id.is_(None), templates.c.team_id == team_id)


async def template_insert(tx: AsyncConnection, template: Template) -> None:
    await tx.execute(
        insert(templates).values(
            template_id=template.template_id,
            team_id=template.team_id,
            alias=template.alias,
            created_at=template.created_at,
            is_snapshot=template.is_snapshot,
        )
    )


async def template_fetch(tx: AsyncConnection, name: str) -> Template | None:
    """By id or alias, whoever owns it."""
    query = select(templates).where(or_(templates.c.template_id == name, templates.c.alias == name))
    row = (await tx.execute(query)).first()
    return None if row is None else _template(row)


async def template_list(tx: AsyncConnection, team_id: TeamId) -> tuple[Template, ...]:
    """Those that the team may use, by alias; snapshots are listed as such."""
    query = select(templates).where(_usable_by(team_id), templates.c.is_snapshot == false()).order_by(templates.c.alias)
    return tuple(_template(row) for row in await tx.execute(query))


async def build_upsert(tx: AsyncConnection, build: Build) -> None:
    """Insert the build, or set state and limits of the one with that id."""
    values: dict[str, Any] = {
        "state": build.state.value,
        "millicpu": build.limits.millicpu,
        "memory_mib": build.limits.memory_mib,
        "disk_mib": build.limits.disk_mib,
        "process_count": build.limits.process_count,
    }
    changed = await tx.execute(update(builds).where(builds.c.build_id == build.build_id).values(**values))
    if changed.rowcount == 0:
        await tx.execute(
            insert(builds).values(
                build_id=build.build_id, template_id=build.template_id, created_at=build.created_at, **values
            )
        )


async def build_list(tx: AsyncConnection, template_id: TemplateId) -> tuple[Build, ...]:
    """Newest first."""
    query = select(builds).where(builds.c.template_id == template_id).order_by(builds.c.created_at.desc())
    return tuple(_build(row) for row in await tx.execute(query))


async def build_is_known(tx: AsyncConnection, build_id: BuildId) -> bool:
    """Whether it was registered, and is ready."""
    query = select(builds.c.build_id).where(
        builds.c.build_id == build_id, builds.c.state == BuildState.READY.value
    )  # fmt: skip
    return (await tx.execute(query)).first() is not None


async def build_fetch_ready(tx: AsyncConnection, template_id: TemplateId) -> Build | None:
    """The newest ready build: what a sandbox of the template is created from."""
    query = (
        select(builds)
        .where(builds.c.template_id == template_id, builds.c.state == BuildState.READY.value)
        .order_by(builds.c.created_at.desc())
        .limit(1)
    )
    row = (await tx.execute(query)).one_or_none()
    return None if row is None else _build(row)
