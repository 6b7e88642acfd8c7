"""Start a program that starts a machine and ends: `runsc run --detach` and its like.

What it leaves running must depend on nothing of ours: it gets no descriptor but those it is handed, a session of
its own and a fixed environment. It may be placed in control groups, and in a mount namespace that only it sees.
"""

import asyncio
import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from firebrick.linux.mount import mount
from firebrick.linux.netns import in_own_thread
from firebrick.linux.process import CommandFailed, kill_group

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19
# The shell's own `echo` writes from the shell's process, which then becomes the program: no child, no race.
_JOIN = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 126; shift; done; shift; exec "$@"'

_libc = ctypes.CDLL(None, use_errno=True)

GROUP_END_POLL_S = 0.002
GROUP_END_POLLS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start and how.

    Attributes:
        join: cgroup.procs files of the groups that it and all its children are in from the first instruction.
        mounts: called in a mount namespace of its own before the program starts; None: the host's namespace.
        output: descriptor for both outputs, of the program and of what it leaves running.
        pass_descriptors: kept open in the program under their numbers.
    """

    argv: Sequence[str | Path]
    output: int
    join: Sequence[Path] = ()
    mounts: Callable[[], None] | None = None
    pass_descriptors: Sequence[int] = field(default=())


async def launch(what: Launch, *, timeout_s: float) -> int:
    """Run it until it ends and return its exit status. What it left running goes on.

    Raises: CommandFailed when it cannot be started or is not done in time.
    Cancel, and timeout: it and its process group are killed and waited for; what left the group is the caller's.
    """
    command = [str(part) for part in what.argv]
    process = await _start(command, what)
    try:
        async with asyncio.timeout(timeout_s):
            await _wait(process)
    except TimeoutError as exc:
        raise CommandFailed(command, None, f"killed after {timeout_s} s") from exc
    finally:
        if process.returncode is None and process.poll() is None:
            _end_group(process)
    return process.returncode


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill it with all of its group and return when none is left: one that still dies may still make a directory."""
    kill_group(process.pid)
    process.wait()
    for _ in range(GROUP_END_POLLS):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(GROUP_END_POLL_S)


async def _start(command: list[str], what: Launch) -> "subprocess.Popen[bytes]":
    started: list[subprocess.Popen[bytes]] = []
    try:
        await in_own_thread(lambda: started.append(_spawn(command, what)))
    except asyncio.CancelledError:
        for process in started:
            _end_group(process)
        raise
    except OSError as exc:
        raise CommandFailed(command, 127, str(exc)) from exc
    return started[0]


def _spawn(command: list[str], what: Launch) -> "subprocess.Popen[bytes]":
    """For a thread of its own: a new mount namespace stays with the thread and its children."""
    if what.mounts is not None:
        if _libc.unshare(_CLONE_NEWNS) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "unshare")
        # Slave, not private: what the host unmounts later must go away here too, or it stays in use for ever.
        mount("none", Path("/"), "none", flags=_MS_REC | _MS_SLAVE)
        what.mounts()
    argv = ["/bin/sh", "-c", _JOIN, "join", *map(str, what.join), "--", *command] if what.join else command
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=what.output, stderr=what.output, cwd="/", env={"PATH": PATH},
        start_new_session=True, pass_fds=what.pass_descriptors,
    )  # fmt: skip


async def _wait(process: "subprocess.Popen[bytes]") -> None:
    descriptor = os.pidfd_open(process.pid)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)
    process.wait()
