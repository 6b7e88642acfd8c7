"""Run one command of the host, wait for it, and never leave it behind.

Every child gets its own process group; on timeout or cancellation the group is killed and waited for.
`CommandFailed` carries the command as it can be pasted into a shell.
"""

import asyncio
import os
import shlex
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class CommandFailed(Exception):
    """A host command did not exit with 0, or not in time (`returncode` None)."""

    def __init__(self, argv: Sequence[str], returncode: int | None, stderr: str) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr
        how = "did not finish in time" if returncode is None else f"exited with {returncode}"
        super().__init__(f"`{shlex.join(argv)}` {how}: {stderr.strip()[-800:]}")


@dataclass(frozen=True, slots=True)
class Completed:
    returncode: int
    stdout: str
    stderr: str


async def run(
    argv: Sequence[str | Path],
    *,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 60.0,
    check: bool = True,
) -> Completed:
    """Run to the end and capture both outputs (so only for commands that leave no child behind).

    Raises:
        CommandFailed: exit status not 0 and `check`, or not done after `timeout_s`.
    Cancel: the group is killed and waited for.
    """
    command = [str(part) for part in argv]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as exc:
        raise CommandFailed(command, 127, str(exc)) from exc
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(input.encode() if input is not None else None)
    except (TimeoutError, asyncio.CancelledError) as exc:
        kill_group(process.pid)
        await asyncio.shield(process.wait())
        if isinstance(exc, TimeoutError):
            raise CommandFailed(command, None, f"killed after {timeout_s} s") from exc
        raise
    done = Completed(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))
    if check and done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stderr or done.stdout)
    return done


async def run_lines(
    argv: Sequence[str | Path],
    on_line: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> None:
    """Run to the end and hand over every line of both outputs as it comes.

    Raises: CommandFailed, with the last lines. Cancel: as `run`.
    """
    command = [str(part) for part in argv]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env,
            start_new_session=True, limit=1 << 20,
        )  # fmt: skip
    except OSError as exc:
        raise CommandFailed(command, 127, str(exc)) from exc
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=40)
    try:
        async with asyncio.timeout(timeout_s):
            async for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip("\n")
                last.append(line)
                on_line(line)
            await process.wait()
    except (TimeoutError, asyncio.CancelledError) as exc:
        kill_group(process.pid)
        await asyncio.shield(process.wait())
        if isinstance(exc, TimeoutError):
            raise CommandFailed(command, None, f"killed after {timeout_s} s") from exc
        raise
    if process.returncode != 0:
        raise CommandFailed(command, process.returncode, "\n".join(last))


def run_sync(
    argv: Sequence[str | Path], *, input: str | None = None, timeout_s: float = 60.0, check: bool = True
) -> Completed:
    """The same for callers without a loop: the CLI's set-up, and threads that live in another namespace."""
    command = [str(part) for part in argv]
    try:
        done = subprocess.run(
            command, input=input, stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True, text=True, errors="replace", timeout=timeout_s, start_new_session=True,
        )  # fmt: skip
    except OSError as exc:
        raise CommandFailed(command, 127, str(exc)) from exc
    except subprocess.TimeoutExpired as exc:
        raise CommandFailed(command, None, f"killed after {timeout_s} s") from exc
    if check and done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stderr or done.stdout)
    return Completed(done.returncode, done.stdout, done.stderr)


def kill_group(pid: int) -> None:
    """SIGKILL the process group that `pid` leads; one that is gone is fine."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRef:
    """A process that cannot be mistaken for a later one with the same pid: pid and start time in clock ticks."""

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        """True while this very process exists and is not a zombie."""
        stat = _read_stat(self.pid)
        return stat is not None and stat[1] == self.start_ticks and stat[0] not in "ZX"

    def kill(self) -> None:
        """SIGKILL it, if it is still the same process."""
        self.send(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM it, if it is still the same process."""
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        try:
            descriptor = os.pidfd_open(self.pid)
        except (ProcessLookupError, OSError):
            return
        try:
            # NOTE: the start time is compared after the pidfd is open, so the pid cannot be reused between.
            if self.is_alive():
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)


def process_ref(pid: int) -> ProcessRef | None:
    """Identify a living process; None when it is gone."""
    stat = _read_stat(pid)
    return None if stat is None else ProcessRef(pid=pid, start_ticks=stat[1])


def _read_stat(pid: int) -> tuple[str, int] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command name may hold spaces and parentheses: fields are counted from its last ")".
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def spawn_detached(argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str]) -> ProcessRef:
    """Start a process that outlives us: own session, no descriptor of ours, both outputs appended to `log`.

    Raises: CommandFailed when it cannot be started.
    """
    command = [str(part) for part in argv]
    with log.open("ab") as sink:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=dict(env), start_new_session=True
            )
        except OSError as exc:
            raise CommandFailed(command, 127, str(exc)) from exc
    # The caller watches it by pidfd; whoever is its parent then reaps it (see `reap`).
    process.returncode = 0
    ref = process_ref(process.pid)
    if ref is None:
        raise CommandFailed(command, None, f"ended at once; see {log}")
    return ref


def reap(ref: ProcessRef) -> int | None:
    """Collect an ended child of ours so that no zombie stays; None when it is not our child or still runs."""
    try:
        pid, status = os.waitpid(ref.pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if pid else None


async def wait_gone(ref: ProcessRef) -> None:
    """Return when the process has ended. Works for processes that are not our children (pidfd)."""
    try:
        descriptor = os.pidfd_open(ref.pid)
    except OSError:
        return
    try:
        if not ref.is_alive():
            return
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        loop.add_reader(descriptor, lambda: None if gone.done() else gone.set_result(None))
        try:
            await gone
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


async def start_child(argv: Sequence[str | Path], *, pass_descriptors: Sequence[int]) -> asyncio.subprocess.Process:
    """Start a process that ends with us: own session, our outputs, no variable of ours but PATH.

    The caller waits for its end. Raises: CommandFailed when it cannot be started.
    """
    command = [str(part) for part in argv]
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "PYTHONPATH")}
    try:
        return await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, env=kept, cwd="/", pass_fds=pass_descriptors, start_new_session=True
        )
    except OSError as exc:
        raise CommandFailed(command, 127, str(exc)) from exc
