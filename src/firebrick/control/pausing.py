"""Sandboxes between running and paused: pause, connect, resume, wake, recover."""

from dataclasses import replace

from firebrick.control.platform import Platform
from firebrick.control.routing import may_wake
from firebrick.control.sandboxes import SandboxService, not_found
from firebrick.control.workflows.grace_bin import recover_sandbox
from firebrick.control.workflows.sandbox_pause import SandboxPause, pause_sandbox
from firebrick.control.workflows.sandbox_resume import GuestStillUnresponsive, SandboxResume, resume_sandbox
from firebrick.lifecycle.expiry import check_timeout, resume_timeout_s
from firebrick.log import bound
from firebrick.model.errors import Forbidden, NotFound, WrongState
from firebrick.model.ids import SandboxId, TeamId
from firebrick.model.sandbox import OnTimeout, Sandbox, SandboxState
from firebrick.model.team import Team
from firebrick.store.sandboxes import sandbox_fetch

SETTLE_POLL_S = 0.05
SETTLE_TIMEOUT_S = 30.0
"""How long a connect waits for a pause or resume that is under way before it answers 409."""


class PauseService:
    def __init__(self, platform: Platform, sandboxes: SandboxService) -> None:
        self._platform = platform
        self._sandboxes = sandboxes

    async def pause(
        self, team_id: TeamId, sandbox_id: SandboxId, *, keep_memory: bool, require_healthy: bool = False
    ) -> Sandbox:
        """Pause it; its node holds it when this returns, with its memory only if that was asked for and can be had.

        One that is being paused already is waited for: a client that repeats a request whose answer it lost must not be
        told that there was nothing to do.

        Raises: NotFound; WrongState — it is not running; Unavailable, DeadlineExceeded — the pause goes on behind;
            Internal — its node cannot pause it, so it runs on; GuestUnresponsive — likewise, with `require_healthy`.
        """
        sandbox = await self._sandboxes.fetch(team_id, sandbox_id)
        if sandbox.state is SandboxState.PAUSING:
            sandbox = await self._wait_settled(team_id, sandbox_id)
            if sandbox.state is SandboxState.PAUSED:
                return sandbox
        with bound(sandbox_id=sandbox_id):
            return await pause_sandbox(
                SandboxPause(
                    platform=self._platform,
                    sandbox_id=sandbox_id,
                    keep_memory=keep_memory,
                    require_healthy=require_healthy,
                )
            )

    async def connect(
        self, team: Team, sandbox_id: SandboxId, timeout_s: int | None, *, default_s: int, keep_memory: bool
    ) -> tuple[Sandbox, bool]:
        """Use it from now on: a running one lives at least `timeout_s` longer, a paused one is resumed for that long.

        Without a timeout a running one gets `default_s`, a paused one the timeout that it was configured with if that
        is longer. One that is being paused or resumed is waited for.

        Returns: the running sandbox, and whether this call resumed it.
        Raises: Invalid, NotFound, WrongState, LimitExceeded, NoCapacity, Unavailable, DeadlineExceeded.
        """
        if timeout_s is not None:
            check_timeout(timeout_s, max_timeout_s=team.max_timeout_s)
        deadline_s = self._platform.clock.monotonic_s() + self._platform.config.patient_s(SETTLE_TIMEOUT_S)
        while True:
            sandbox = await self._sandboxes.fetch(team.team_id, sandbox_id)
            if sandbox.state is SandboxState.RUNNING:
                asked = default_s if timeout_s is None else timeout_s
                try:
                    return await self._sandboxes.extend(team, sandbox_id, asked), False
                except NotFound:
                    # It ended or is being paused since: look again.
                    continue
            if sandbox.state is SandboxState.PAUSED:
                wanted = resume_timeout_s(timeout_s, configured_s=sandbox.timeout_s, default_s=default_s)
                try:
                    return await self._resume(sandbox, min(wanted, team.max_timeout_s), keep_memory), True
                except GuestStillUnresponsive:
                    raise
                except WrongState:
                    # Another request was faster: look again.
                    pass
            if self._platform.clock.monotonic_s() > deadline_s:
                raise WrongState(f"Sandbox {sandbox_id} is being {sandbox.state.value[:-3]}ed. Try again.")
            await self._platform.clock.sleep(SETTLE_POLL_S)

    async def resume(
        self, team: Team, sandbox_id: SandboxId, timeout_s: int, *, keep_memory: bool, on_timeout: OnTimeout | None
    ) -> Sandbox:
        """Resume a paused one for `timeout_s`; `on_timeout` None keeps what is to happen at its end.

        Raises: WrongState — it is not paused; else as `connect`.
        """
        check_timeout(timeout_s, max_timeout_s=team.max_timeout_s)
        sandbox = await self._sandboxes.fetch(team.team_id, sandbox_id)
        if on_timeout is not None:
            sandbox = replace(sandbox, on_timeout=on_timeout)
        return await self._resume(sandbox, timeout_s, keep_memory)

    async def wake(self, sandbox_id: SandboxId) -> Sandbox:
        """Traffic came for a sandbox: resume it if its owner allowed that. The caller has checked the traffic's token.

        Raises: NotFound — unknown or ended; Forbidden — its owner did not allow it, or its memory is gone; else as
            `connect`.
        """
        deadline_s = self._platform.clock.monotonic_s() + self._platform.config.patient_s(SETTLE_TIMEOUT_S)
        while True:
            async with self._platform.database.read() as tx:
                sandbox = await sandbox_fetch(tx, sandbox_id)
            if sandbox is None:
                raise not_found(sandbox_id)
            if sandbox.state is SandboxState.RUNNING:
                return sandbox
            if sandbox.state is SandboxState.PAUSED:
                if not may_wake(sandbox):
                    raise Forbidden(f"Sandbox {sandbox_id} is paused. Connect to it to resume it.")
                wanted = resume_timeout_s(None, configured_s=sandbox.timeout_s, default_s=WAKE_LEAST_S)
                try:
                    return await self._resume(sandbox, wanted, keep_memory=True)
                except GuestStillUnresponsive:
                    raise
                except WrongState:
                    pass
            elif sandbox.state not in (SandboxState.PAUSING, SandboxState.RESUMING):
                raise not_found(sandbox_id)
            if self._platform.clock.monotonic_s() > deadline_s:
                raise WrongState(f"Sandbox {sandbox_id} is between two states. Try again.")
            await self._platform.clock.sleep(SETTLE_POLL_S)

    async def recover(self, team_id: TeamId, sandbox_id: SandboxId) -> Sandbox:
        """Bring back one that its timeout ended, paused, with its disk.

        Raises: NotFound; WrongState — it has not ended, or is not kept any more.
        """
        async with self._platform.database.read() as tx:
            row = await sandbox_fetch(tx, sandbox_id)
        if row is None or row.team_id != team_id or row.state is SandboxState.CREATING:
            raise not_found(sandbox_id)
        return await recover_sandbox(self._platform, sandbox_id)

    async def _wait_settled(self, team_id: TeamId, sandbox_id: SandboxId) -> Sandbox:
        """The sandbox when its pause or resume is done, or as it is after SETTLE_TIMEOUT_S."""
        deadline_s = self._platform.clock.monotonic_s() + self._platform.config.patient_s(SETTLE_TIMEOUT_S)
        while True:
            sandbox = await self._sandboxes.fetch(team_id, sandbox_id)
            is_between = sandbox.state in (SandboxState.PAUSING, SandboxState.RESUMING)
            if not is_between or self._platform.clock.monotonic_s() > deadline_s:
                return sandbox
            await self._platform.clock.sleep(SETTLE_POLL_S)

    async def _resume(self, sandbox: Sandbox, timeout_s: int, keep_memory: bool) -> Sandbox:
        with bound(sandbox_id=sandbox.sandbox_id):
            return await resume_sandbox(
                SandboxResume(
                    platform=self._platform, sandbox=sandbox, timeout_s=timeout_s, keep_memory=keep_memory
                )
            )  # fmt: skip


WAKE_LEAST_S = 300
"""A sandbox that traffic woke lives at least this long, as with E2B."""
