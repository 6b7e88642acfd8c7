"""Templates: what a sandbox can be created from. This version ships its own and builds none for users."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.clock import Clock
from firebrick.model.errors import NotFound
from firebrick.model.ids import BuildId, TeamId, TemplateId
from firebrick.model.machine import Limits
from firebrick.model.snapshot import Snapshot
from firebrick.model.team import Team
from firebrick.model.template import Build, BuildState, Template
from firebrick.store.database import Database
from firebrick.store.sandboxes import sandbox_count_by_template
from firebrick.store.snapshots import snapshot_fetch_ready
from firebrick.store.templates import (
    build_fetch_ready,
    build_list,
    build_upsert,
    template_fetch,
    template_insert,
    template_list,
)

DEFAULT_TAG = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateWithBuilds:
    """A template, its builds (newest first) and its use by sandboxes that are still remembered."""

    template: Template
    builds: tuple[Build, ...]
    spawn_count: int
    last_spawned_at: datetime | None

    @property
    def ready(self) -> Build | None:
        return next((build for build in self.builds if build.state is BuildState.READY), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a sandbox is created from. With a snapshot it starts as that, on the node that has it."""

    template: Template
    build_id: BuildId
    limits: Limits
    snapshot: Snapshot | None = None


def slug_of(team: Team) -> str:
    """The namespace of a team's names: its own name in the characters that names may have."""
    return re.sub(r"[^a-z0-9_-]+", "-", team.name.lower()).strip("-") or "team"


async def find_template(tx: AsyncConnection, team: Team, wanted: str) -> Template | None:
    """By id, by full alias, or by a name in the team's own namespace. Another team's is looked for as often as one that
    is not there, and found as little."""
    for name in (wanted, f"{slug_of(team)}/{wanted}"):
        template = await template_fetch(tx, name)
        if template is not None and template.team_id in (None, team.team_id):
            return template
    return None


async def _snapshot_source(tx: AsyncConnection, template: Template, tag: str, name: str) -> Source:
    snapshot = await snapshot_fetch_ready(tx, template.template_id, tag)
    if snapshot is None and tag != DEFAULT_TAG:
        raise NotFound(f"tag '{_shown(tag)}' does not exist for template '{_shown(name.partition(':')[0])}'")
    if snapshot is None:
        raise NotFound(f"template '{_shown(name)}' not found")
    return Source(template=template, build_id=snapshot.build_id, limits=snapshot.limits, snapshot=snapshot)


def shipped_template_id(alias: str) -> TemplateId:
    """The id of a template of ours: the same in every installation, 20 characters like E2B's."""
    return TemplateId("t" + hashlib.sha256(f"shipped:{alias}".encode()).hexdigest()[:19])


class TemplateService:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def resolve(self, team: Team, name: str) -> Source:
        """What `name` (id, alias or snapshot; any case; with a tag) means: the newest ready build of a template, or a
        snapshot.

        Raises: NotFound — no such template, snapshot or tag, nothing is built of it yet, or another team's.
        """
        wanted, _, tag = name.strip().lower().partition(":")
        async with self._database.read() as tx:
            template = await find_template(tx, team, wanted)
            if template is None:
                raise NotFound(f"template '{_shown(name)}' not found")
            if template.is_snapshot:
                return await _snapshot_source(tx, template, tag or DEFAULT_TAG, name)
            build = await build_fetch_ready(tx, template.template_id)
        if tag not in ("", DEFAULT_TAG):
            raise NotFound(f"tag '{_shown(tag)}' does not exist for template '{_shown(wanted)}'")
        if build is None:
            raise NotFound(f"template '{_shown(name)}' has no build that is ready")
        return Source(template=template, build_id=build.build_id, limits=build.limits)

    async def list_all(self, team_id: TeamId) -> tuple[TemplateWithBuilds, ...]:
        """Every template that the team may use, by alias."""
        async with self._database.read() as tx:
            uses = await sandbox_count_by_template(tx)
            return tuple([await _with_builds(tx, item, uses) for item in await template_list(tx, team_id)])

    async def ensure_shipped(self, *, alias: str, build_id: BuildId, limits: Limits) -> Template:
        """Register a template of ours and a finished build of it; sandboxes use the newest build.

        Idempotent: on alias and build_id; a repeated call sets the build's limits.
        """
        async with self._database.write() as tx:
            template = await template_fetch(tx, alias)
            if template is None:
                template = Template(
                    template_id=shipped_template_id(alias), alias=alias, team_id=None, created_at=self._clock.now()
                )
                await template_insert(tx, template)
            build = Build(
                build_id=build_id,
                template_id=template.template_id,
                state=BuildState.READY,
                limits=limits,
                created_at=self._clock.now(),
            )
            await build_upsert(tx, build)
        return template


async def _with_builds(
    tx: AsyncConnection, template: Template, uses: Mapping[TemplateId, tuple[int, datetime]]
) -> TemplateWithBuilds:
    count, latest = uses.get(template.template_id, (0, None))
    builds = await build_list(tx, template.template_id)
    return TemplateWithBuilds(template=template, builds=builds, spawn_count=count, last_spawned_at=latest)


def _shown(text: str) -> str:
    """What a caller sent, safe and short enough to send back."""
    return "".join(char if char.isprintable() else "?" for char in text[:64])
