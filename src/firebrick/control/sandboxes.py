"""Sandboxes as their owners use them: create, look, prolong, kill. Pausing is in `pausing.py`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from firebrick.control.actor import note_object
from firebrick.control.autopsy import AutopsyService
from firebrick.control.platform import Platform
from firebrick.control.routing import traffic_token
from firebrick.control.templates import Source, TemplateService
from firebrick.control.workflows.sandbox_create import MEMORY_KEY as MEMORY_KEY
from firebrick.control.workflows.sandbox_create import SandboxCreate, create_sandbox
from firebrick.control.workflows.sandbox_kill import begin_end
from firebrick.lifecycle.autopsy import told_end
from firebrick.lifecycle.expiry import check_timeout, expiry_extended, expiry_set
from firebrick.lifecycle.sandbox_machine import is_visible
from firebrick.log import bound, get_log
from firebrick.model.errors import AlreadyExists, Conflict, FirebrickError, Invalid, NotFound, WrongState
from firebrick.model.ids import SandboxId, TeamId, new_sandbox_id
from firebrick.model.machine import Limits
from firebrick.model.sandbox import EndReason, OnTimeout, Sandbox, SandboxState
from firebrick.model.team import Team
from firebrick.store.idempotency import IdempotencyRecord, idempotency_fetch
from firebrick.store.sandboxes import sandbox_fetch, sandbox_list_of_team, sandbox_update_if

ATTEMPTS = 5

log = get_log("control.sandboxes")


class IdempotencyMismatch(Invalid):
    """The key was used for another request."""

    code = "idempotency_request_mismatch"


class IdempotencyInProgress(WrongState):
    """The first request with this key is not done yet."""

    code = "idempotency_request_in_progress"
    retryable = True


DISK_STEP_MIB = 1024
"""Nodes keep an empty disk of each size that they made one of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSandbox:
    """What a caller asks for. `env` may hold secrets, so it stays out of `repr`. `keep_memory` False: of a snapshot the
    disk alone. `disk_mib` None: as large a disk as its source has."""

    template: str
    timeout_s: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    secure: bool = True
    allow_internet_access: bool | None = None
    network: Mapping[str, Any] | None = None
    on_timeout: OnTimeout = OnTimeout.KILL
    auto_pause_memory: bool = True
    auto_resume: bool = False
    idle_timeout_s: int | None = None
    keep_memory: bool = True
    disk_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """`body_hash` stands for everything that was asked."""

    key: str
    body_hash: str


def hash_body(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class SandboxService:
    def __init__(self, platform: Platform, templates: TemplateService, autopsies: AutopsyService) -> None:
        self._platform = platform
        self._autopsies = autopsies
        self._templates = templates

    async def create(self, team: Team, wish: NewSandbox, idempotency: Idempotency | None = None) -> Sandbox:
        """Start a sandbox; it is reachable when this returns.

        Raises: Invalid, NotFound (template), Forbidden, LimitExceeded, NoCapacity, Unavailable, DeadlineExceeded;
            IdempotencyMismatch, IdempotencyInProgress.
        Idempotent: on the idempotency key, for a day.
        """
        check_timeout(wish.timeout_s, max_timeout_s=team.max_timeout_s)
        if idempotency is not None:
            earlier = await self._earlier(team.team_id, idempotency)
            if earlier is not None:
                return earlier
        source = await self._templates.resolve(team, wish.template)
        snapshot = source.snapshot
        now = self._platform.clock.now()
        sandbox = Sandbox(
            sandbox_id=new_sandbox_id(),
            team_id=team.team_id,
            template_id=source.template.template_id,
            build_id=source.build_id,
            state=SandboxState.CREATING,
            generation=1,
            limits=wanted_limits(source, wish, max_disk_mib=self._platform.config.max_disk_mib),
            created_at=now,
            started_at=now,
            expires_at=now + timedelta(seconds=wish.timeout_s),
            timeout_s=wish.timeout_s,
            template_alias=None if snapshot is not None and snapshot.name is None else source.template.alias,
            metadata=dict(wish.metadata),
            env=dict(wish.env),
            secure=wish.secure,
            allow_internet_access=wish.allow_internet_access,
            network=None if wish.network is None else dict(wish.network),
            on_timeout=wish.on_timeout,
            auto_pause_memory=wish.auto_pause_memory,
            auto_resume=wish.auto_resume,
            idle_timeout_s=wish.idle_timeout_s,
            snapshot_id=None if snapshot is None else snapshot.snapshot_id,
            runtime=None if snapshot is None else snapshot.runtime,
        )
        record = None if idempotency is None else _record(sandbox, idempotency)
        note_object(sandbox.sandbox_id)
        create = SandboxCreate(
            platform=self._platform,
            sandbox=sandbox,
            idempotency=record,
            only_node=None if snapshot is None else snapshot.node_id,
            keep_memory=wish.keep_memory,
        )
        with bound(sandbox_id=sandbox.sandbox_id):
            try:
                return await create_sandbox(create)
            except AlreadyExists:
                # Another request with the same key was faster.
                earlier = None if idempotency is None else await self._earlier(team.team_id, idempotency)
                if earlier is None:
                    raise
                return earlier
            except FirebrickError as exc:
                await self._autopsies.note_failed_create(create, exc)
                raise

    async def _earlier(self, team_id: TeamId, idempotency: Idempotency) -> Sandbox | None:
        """The sandbox that an earlier request with this key made; None when there was none."""
        async with self._platform.database.read() as tx:
            record = await idempotency_fetch(tx, team_id, idempotency.key)
            sandbox = None if record is None else await sandbox_fetch(tx, record.sandbox_id)
        if record is None:
            return None
        if record.body_hash != idempotency.body_hash:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used for another request. Use a new key for a new request."
            )
        if sandbox is None or sandbox.state is SandboxState.CREATING:
            raise IdempotencyInProgress("The first request with this Idempotency-Key is not done yet. Try again.")
        return sandbox

    async def fetch(self, team_id: TeamId, sandbox_id: SandboxId) -> Sandbox:
        """Raises NotFound: unknown, another team's, still being created, or ended."""
        async with self._platform.database.read() as tx:
            sandbox = await sandbox_fetch(tx, sandbox_id)
        if sandbox is None or sandbox.team_id != team_id or not is_visible(sandbox.state):
            raise not_found(sandbox_id, sandbox if sandbox is not None and sandbox.team_id == team_id else None)
        return sandbox

    async def kill(self, team_id: TeamId, sandbox_id: SandboxId) -> None:
        """End it: gone for everybody when this returns; its node is told behind.

        Raises: NotFound — also the second time.
        """
        await self.fetch(team_id, sandbox_id)
        if not await begin_end(self._platform, sandbox_id, EndReason.KILLED):
            raise not_found(sandbox_id)

    async def kill_all(self, team_id: TeamId) -> tuple[int, int]:
        """End everything that a team has, the paused and the half-created too.

        Returns: how many were ended, and how many could not be; those are worth another call.
        """
        async with self._platform.database.read() as tx:
            found = await sandbox_list_of_team(tx, team_id)
        killed = failed = 0
        for sandbox in found:
            try:
                killed += await begin_end(self._platform, sandbox.sandbox_id, EndReason.KILLED)
            except FirebrickError as exc:
                failed += 1
                log.warning("sandbox.not_killed", sandbox_id=sandbox.sandbox_id, error=exc.message)
        return killed, failed

    async def set_timeout(self, team: Team, sandbox_id: SandboxId, timeout_s: int) -> Sandbox:
        """Set the end to now plus `timeout_s`, earlier or later; 0 ends it at once."""
        check_timeout(timeout_s, max_timeout_s=team.max_timeout_s, allow_zero=True)
        return await self._move_end(team, sandbox_id, timeout_s, extend_only=False)

    async def extend(self, team: Team, sandbox_id: SandboxId, timeout_s: int) -> Sandbox:
        """Move the end to now plus `timeout_s` if that is later; else nothing changes, to the microsecond."""
        check_timeout(timeout_s, max_timeout_s=team.max_timeout_s, allow_zero=True)
        return await self._move_end(team, sandbox_id, timeout_s, extend_only=True)

    async def _move_end(self, team: Team, sandbox_id: SandboxId, timeout_s: int, *, extend_only: bool) -> Sandbox:
        for _ in range(ATTEMPTS):
            sandbox = await self.fetch(team.team_id, sandbox_id)
            if sandbox.state is not SandboxState.RUNNING:
                # A paused one has no time left to move; what it lives for is decided when it is resumed.
                raise not_found(sandbox_id)
            if self._moved(team, sandbox, timeout_s, extend_only=extend_only) == sandbox:
                return sandbox
            try:
                async with self._platform.database.write() as tx:
                    # Decided on the row as it is now: many requests at once then follow one another without conflict.
                    current = await sandbox_fetch(tx, sandbox_id)
                    if current is None or current.state is not SandboxState.RUNNING:
                        continue
                    changed = await sandbox_update_if(
                        tx, self._moved(team, current, timeout_s, extend_only=extend_only)
                    )  # fmt: skip
            except Conflict:
                continue
            self._platform.signals.expires(changed.expires_at)
            return changed
        raise Conflict(f"Sandbox {sandbox_id} is being changed by many requests at once. Try again.")

    def _moved(self, team: Team, sandbox: Sandbox, timeout_s: int, *, extend_only: bool) -> Sandbox:
        """The row with its new end; itself when that stays. What was configured is remembered for a resume: an
        extension never shortens that either."""
        expires_at = self._end_of(team, sandbox, timeout_s, extend_only=extend_only)
        if expires_at == sandbox.expires_at:
            return sandbox
        configured_s = max(timeout_s, sandbox.timeout_s) if extend_only else timeout_s or sandbox.timeout_s
        return replace(sandbox, expires_at=expires_at, timeout_s=configured_s)

    def _end_of(self, team: Team, sandbox: Sandbox, timeout_s: int, *, extend_only: bool) -> datetime:
        now = self._platform.clock.now()
        if extend_only:
            return expiry_extended(
                sandbox.expires_at,
                now=now,
                started_at=sandbox.started_at,
                timeout_s=timeout_s,
                max_timeout_s=team.max_timeout_s,
            )
        return expiry_set(
            now=now, started_at=sandbox.started_at, timeout_s=timeout_s, max_timeout_s=team.max_timeout_s
        )  # fmt: skip

    def access_token(self, sandbox: Sandbox) -> str | None:
        """The guest agent's token; None for a sandbox that was created with `secure: false`."""
        return self._platform.tokens.access_token(sandbox.sandbox_id) if sandbox.secure else None

    def traffic_token(self, sandbox: Sandbox) -> str | None:
        """What requests to its ports must bring; None for one whose ports are public."""
        return traffic_token(self._platform, sandbox)


def wanted_limits(source: Source, wish: NewSandbox, *, max_disk_mib: int) -> Limits:
    """Those of what it is created from, with the disk that was asked for.

    Raises: Invalid — a disk that is smaller, larger than the setting allows, no whole GiB, or grown under a memory.
    """
    least, asked = source.limits.disk_mib, wish.disk_mib
    if asked is None or asked == least:
        return source.limits
    if not least < asked <= max_disk_mib or asked % DISK_STEP_MIB:
        raise Invalid(
            f"a disk of {asked} MiB: it has {least}, for a disk only grows, or more in whole GiB ({DISK_STEP_MIB}), up "
            f"to {max_disk_mib}"
        )
    if source.snapshot is not None and source.snapshot.keeps_memory and wish.keep_memory:
        raise Invalid(f'a larger disk does not fit the memory of this snapshot; add metadata {MEMORY_KEY}: "false"')
    return replace(source.limits, disk_mib=asked)


def _record(sandbox: Sandbox, idempotency: Idempotency) -> IdempotencyRecord:
    return IdempotencyRecord(
        team_id=sandbox.team_id,
        key=idempotency.key,
        body_hash=idempotency.body_hash,
        sandbox_id=sandbox.sandbox_id,
        created_at=sandbox.created_at,
    )


def not_found(sandbox_id: str, own: Sandbox | None = None) -> NotFound:
    """The same text for an unknown sandbox and for another team's. Of the caller's `own`, which has ended, also why."""
    why = "" if own is None or own.end_reason is None else f": {told_end(own)}"
    return NotFound(f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it{why}")
