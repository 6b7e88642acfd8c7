"""Host commands: nothing is left behind, and failures can be pasted into a shell."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from firebrick.linux.process import CommandFailed, ProcessRef, process_ref, reap, run, spawn_detached, wait_gone


async def test_a_failure_can_be_pasted_into_a_shell() -> None:
    """A command that fails is told as a shell would take it, with its status and last words."""
    with pytest.raises(CommandFailed, match=r"`sh -c 'echo no >&2; exit 3'` exited with 3: no"):
        await run(["sh", "-c", "echo no >&2; exit 3"])


async def test_a_missing_program_is_a_failure_too() -> None:
    """A program that is not there is a CommandFailed with 127, as a shell says."""
    with pytest.raises(CommandFailed) as caught:
        await run(["/nonexistent/program"])
    assert caught.value.returncode == 127


async def test_a_command_out_of_time_leaves_no_child(tmp_path: Path) -> None:
    """On timeout the whole process group is killed, grandchildren included."""
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $! > {pids}; sleep 1000"
    with pytest.raises(CommandFailed, match="did not finish in time"):
        await run(["sh", "-c", script], timeout_s=0.3)
    grandchild = int(pids.read_text())
    ref = process_ref(grandchild)
    if ref is not None:
        await asyncio.wait_for(wait_gone(ref), 10)


async def test_a_cancelled_command_is_waited_for() -> None:
    """Cancelling the caller kills the command and waits for it."""
    task = asyncio.create_task(run(["sleep", "1000"]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_reused_pid_is_another_process() -> None:
    """A reference holds the start time too, so that a later process with the same pid is not killed for it."""
    me = process_ref(os.getpid())
    assert me is not None
    assert me.is_alive()
    impostor = ProcessRef(pid=me.pid, start_ticks=me.start_ticks - 1)
    assert not impostor.is_alive()
    impostor.kill()  # we are still here


async def test_a_detached_process_is_watched_and_reaped(tmp_path: Path) -> None:
    """A detached process writes to its log, its end is noticed by pidfd, and no zombie stays."""
    log = tmp_path / "log"
    ref = spawn_detached([sys.executable, "-c", "print('here')"], log=log, env={})
    await asyncio.wait_for(wait_gone(ref), 30)
    assert reap(ref) == 0
    assert reap(ref) is None
    assert log.read_text() == "here\n"
