"""Snapshots and forks as their owners use them."""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from firebrick.control.autopsy import AutopsyService
from firebrick.control.platform import Platform
from firebrick.control.sandboxes import SandboxService
from firebrick.control.templates import DEFAULT_TAG, find_template, slug_of
from firebrick.control.workflows.sandbox_fork import SandboxFork, fork_sandbox
from firebrick.control.workflows.snapshot_create import SnapshotCreate, create_snapshot
from firebrick.lifecycle.expiry import check_timeout
from firebrick.model.errors import FirebrickError, Forbidden, Invalid, NotFound, WrongState
from firebrick.model.ids import SandboxId, SnapshotId, TeamId, new_sandbox_id, new_snapshot_id, new_template_id
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.model.snapshot import Snapshot, SnapshotState
from firebrick.model.team import Team
from firebrick.store.snapshots import SnapshotFilter, snapshot_list, snapshot_list_of, snapshot_mark_deleting

__all__ = ["SnapshotFilter", "SnapshotService", "parse_name", "parse_name_filter"]

NAME = re.compile(r"[a-z0-9_-]{1,100}\Z")
TAG = re.compile(r"[a-z0-9_.-]{1,100}\Z")
UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPage:
    snapshots: tuple[Snapshot, ...]
    next_token: str | None


def parse_name(text: str, team: Team) -> tuple[str, str]:
    """`[<team>/]<name>[:<tag>]`, any case, to (`<team>/<name>`, tag).

    Raises: Invalid — a character that a name cannot have, or another team's namespace.
    """
    path, _, tag = text.strip().lower().partition(":")
    namespace, slash, name = path.rpartition("/")
    own = slug_of(team)
    if slash and namespace != own:
        raise Invalid(f"namespace '{namespace[:64]}' must match your team '{own}'")
    if not NAME.match(name):
        raise Invalid("name: 1 to 100 characters of a-z, 0-9, '-' and '_'")
    if tag and (not TAG.match(tag) or UUID.match(tag)):
        raise Invalid("name: a tag has 1 to 100 characters of a-z, 0-9, '-', '_' and '.', and is not a UUID")
    return f"{own}/{name}", tag or DEFAULT_TAG


def parse_name_filter(text: str, team: Team) -> tuple[frozenset[str], str | None]:
    """What a filter by name or id may mean: with or without the team's namespace; tag None when it names none."""
    path, _, tag = text.strip().lower().partition(":")
    return frozenset({path, f"{slug_of(team)}/{path}"}), tag or None


class SnapshotService:
    def __init__(self, platform: Platform, sandboxes: SandboxService, autopsies: AutopsyService) -> None:
        self._platform = platform
        self._sandboxes = sandboxes
        self._autopsies = autopsies

    async def create(
        self, team: Team, sandbox_id: SandboxId, *, name: str | None, keep_memory: bool
    ) -> Snapshot:  # fmt: skip
        """Take a snapshot; the sandbox goes on as it was. A name that is taken means the new one from now on.

        Raises: Invalid (name), NotFound, WrongState, Unavailable, DeadlineExceeded, Internal.
        """
        full, tag = (None, DEFAULT_TAG) if name is None else parse_name(name, team)
        source = await self._source(team.team_id, sandbox_id)
        snapshot = replace(self._wish(source, is_private=False), name=full, tag=tag)
        return await create_snapshot(
            SnapshotCreate(platform=self._platform, source=source, snapshot=snapshot, keep_memory=keep_memory)
        )

    async def fork(
        self, team: Team, sandbox_id: SandboxId, *, count: int, timeout_s: int
    ) -> list[Sandbox | FirebrickError]:
        """Create `count` sandboxes that start as this one is now. Each result is the sandbox or why there is none.

        Raises: Invalid (timeout), NotFound, WrongState, Unavailable, DeadlineExceeded, Internal: nothing was started.
        """
        check_timeout(timeout_s, max_timeout_s=team.max_timeout_s)
        source = await self._source(team.team_id, sandbox_id)
        snapshot = self._wish(source, is_private=True)
        now = self._platform.clock.now()
        wishes = [
            replace(
                source,
                sandbox_id=new_sandbox_id(),
                state=SandboxState.CREATING,
                generation=1,
                created_at=now,
                started_at=now,
                expires_at=now + timedelta(seconds=timeout_s),
                timeout_s=timeout_s,
                node_id=None,
                machine_id=None,
                address=None,
                paused_at=None,
                keeps_memory=None,
                silent_at_pause=False,
                snapshot_id=snapshot.snapshot_id,
            )
            for _ in range(count)
        ]
        taking = SnapshotCreate(platform=self._platform, source=source, snapshot=snapshot)
        fork = SandboxFork(
            platform=self._platform,
            snapshot=taking,
            wishes=wishes,
            note_failed=self._autopsies.note_failed_create,
        )
        return await fork_sandbox(fork)

    async def list_page(self, wanted: SnapshotFilter, token: str | None) -> SnapshotPage:
        """The page after `token`, or the first. Raises Invalid for a token that is not ours, or another team's."""
        tokens = self._platform.tokens
        if token:
            position = tokens.read_page_token(wanted.team_id, token)
            if "s" not in position:
                raise Invalid("Invalid next token")
            wanted = replace(wanted, after=(datetime.fromisoformat(position["t"]), position["s"]))
        async with self._platform.database.read() as tx:
            found = await snapshot_list(tx, wanted)
        page = found[: wanted.limit]
        if len(found) <= wanted.limit:
            return SnapshotPage(snapshots=page, next_token=None)
        last = {"t": page[-1].created_at.isoformat(), "s": page[-1].snapshot_id}
        return SnapshotPage(snapshots=page, next_token=tokens.page_token(wanted.team_id, last))

    async def delete(self, team: Team, name: str) -> None:
        """Delete the snapshot of that id or name; with a tag only that one of the name's, without all of them.

        It is gone for everybody when this returns; sandboxes that were made from it live on.

        Raises: NotFound — also the second time, and for a template that is no snapshot of the team's.
        """
        wanted, _, tag = name.strip().lower().partition(":")
        async with self._platform.database.write() as tx:
            template = await find_template(tx, team, wanted)
            own = template is not None and template.is_snapshot and template.team_id == team.team_id
            ids: list[SnapshotId] = []
            if template is not None and own:
                of_it = await snapshot_list_of(tx, template.template_id)
                ids = [item.snapshot_id for item in of_it if tag in ("", item.tag) and not item.is_private]
            if template is not None and template.team_id is None:
                raise Forbidden(f"template '{_shown(name)}' comes with Firebrick and cannot be deleted")
            if not ids or await snapshot_mark_deleting(tx, ids) == 0:
                raise NotFound(f"template '{_shown(name)}' not found")
        self._platform.signals.snapshots.poke()

    async def _source(self, team_id: TeamId, sandbox_id: SandboxId) -> Sandbox:
        sandbox = await self._sandboxes.fetch(team_id, sandbox_id)
        if sandbox.state not in (SandboxState.RUNNING, SandboxState.PAUSED) or sandbox.node_id is None:
            raise WrongState(f"Sandbox {sandbox_id} is {sandbox.state.value}. Try again.")
        return sandbox

    def _wish(self, source: Sandbox, *, is_private: bool) -> Snapshot:
        assert source.node_id is not None
        return Snapshot(
            snapshot_id=new_snapshot_id(),
            template_id=new_template_id(),
            team_id=source.team_id,
            state=SnapshotState.CREATING,
            build_id=source.build_id,
            source_id=source.sandbox_id,
            node_id=source.node_id,
            limits=source.limits,
            created_at=self._platform.clock.now(),
            is_private=is_private,
        )


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:64])
