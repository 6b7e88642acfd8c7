"""The supervisor process: start every role, start it again when it ends, stop all in order when told to."""

import asyncio
import fcntl
import os
import signal
from pathlib import Path

from firebrick.clock import Clock
from firebrick.config import Config
from firebrick.linux.process import CommandFailed, ProcessRef, process_ref, reap, spawn_detached, wait_gone
from firebrick.log import get_log
from firebrick.model.errors import WrongState
from firebrick.supervisor.roles import SUPERVISOR, Role, pid_file, role_argv, role_env, running, write_pid_file

FIRST_DELAY_S = 0.2
STEADY_S = 10.0
"""A role that ran this long is healthy: its next end starts again at the first delay."""
STOP_TIMEOUT_S = 15.0
LOG_LIMIT_BYTES = 64 * 1024 * 1024
LOG_CHECK_S = 60.0

log = get_log("supervisor")


class Keeper:
    """Owner of the role processes of one data directory. `run` returns after SIGTERM or SIGINT."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep the roles until told to stop.

        Raises: WrongState — another supervisor keeps this data directory.
        """
        lock = _lock(self._config.run_dir / "supervisor.lock")
        try:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stopping.set)
            me = process_ref(os.getpid())
            if me is not None:
                write_pid_file(self._config, SUPERVISOR, me)
            async with asyncio.TaskGroup() as tasks:
                keepers = [tasks.create_task(self._keep(role)) for role in Role]
                keepers.append(tasks.create_task(self._bound_logs()))
                await self._stopping.wait()
                for keeper in keepers:
                    keeper.cancel()
            for role in reversed(Role):
                await self._stop(role)
            pid_file(self._config, SUPERVISOR).unlink(missing_ok=True)
        finally:
            os.close(lock)

    async def _keep(self, role: Role) -> None:
        delay = FIRST_DELAY_S
        while True:
            ref = running(self._config, role)
            if ref is not None:
                log.info("role.adopted", role_name=role, pid=ref.pid)
            elif (ref := await self._start(role)) is None:
                await self._clock.sleep(self._config.longest_restart_delay_s)
                continue
            started = self._clock.monotonic_s()
            await wait_gone(ref)
            log.warning("role.ended", role_name=role, pid=ref.pid, exit_code=reap(ref))
            ran_s = self._clock.monotonic_s() - started
            delay = next_delay_s(delay, ran_s=ran_s, longest_s=self._config.longest_restart_delay_s)
            await self._clock.sleep(delay)

    async def _start(self, role: Role) -> ProcessRef | None:
        """None when it cannot be started now; then nothing of it runs."""
        try:
            ref = spawn_detached(role_argv(role), log=log_file(self._config, role), env=role_env(self._config))
        except (CommandFailed, OSError) as exc:
            log.error("role.not_started", role_name=role, reason=str(exc))
            return None
        try:
            write_pid_file(self._config, role, ref)
        except OSError as exc:
            # Nobody would find it again, and a second one would be started beside it.
            log.error("role.not_noted", role_name=role, reason=str(exc))
            ref.kill()
            await wait_gone(ref)
            reap(ref)
            return None
        log.info("role.started", role_name=role, pid=ref.pid)
        return ref

    async def _stop(self, role: Role) -> None:
        ref = running(self._config, role)
        if ref is not None:
            ref.terminate()
            try:
                async with asyncio.timeout(self._config.patient_s(STOP_TIMEOUT_S)):
                    await wait_gone(ref)
            except TimeoutError:
                log.warning("role.killed", role_name=role, pid=ref.pid)
                ref.kill()
                await wait_gone(ref)
            reap(ref)
        pid_file(self._config, role).unlink(missing_ok=True)

    async def _bound_logs(self) -> None:
        """Cut a role's log in place when it has grown too long; the roles append, so they go on at its start."""
        while True:
            for role in (*Role, SUPERVISOR):
                path = log_file(self._config, role)
                if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
                    cut_log(path)
            await self._clock.sleep(LOG_CHECK_S)


def cut_log(path: Path) -> None:
    """Empty a log; its second half is put aside, if the disk has room for that."""
    old = path.with_suffix(".log.1")
    try:
        old.write_bytes(path.read_bytes()[-LOG_LIMIT_BYTES // 2 :])
    except OSError:
        old.unlink(missing_ok=True)
    os.truncate(path, 0)


def next_delay_s(last_s: float, *, ran_s: float, longest_s: float) -> float:
    """How long to wait before a role is started again that has just run for `ran_s`, after a wait of `last_s`. Pure."""
    return min(FIRST_DELAY_S if ran_s > STEADY_S else last_s * 2, longest_s)


def log_file(config: Config, role: str) -> Path:
    return config.log_dir / f"{role}.log"


def _lock(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        raise WrongState(f"Another supervisor already keeps {path.parent.parent}.") from exc
    return descriptor
