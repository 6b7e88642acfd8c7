"""The undo stack: newest first, all of them, whatever fails."""

import asyncio

import pytest

from firebrick.linux.undo import UndoStack


async def test_undos_run_newest_first() -> None:
    """Leaving the block without release undoes everything in reverse order."""
    done: list[int] = []
    async with UndoStack() as undo:
        undo.push(lambda: done.append(1))
        undo.push(lambda: done.append(2))
    assert done == [2, 1]


async def test_release_keeps_the_effects() -> None:
    """After release nothing is undone."""
    done: list[int] = []
    async with UndoStack() as undo:
        undo.push(lambda: done.append(1))
        undo.release()
    assert done == []


async def test_one_failing_undo_hides_no_other() -> None:
    """All undos run even if one fails; the failures are raised together."""
    done: list[int] = []

    def fail() -> None:
        raise OSError("busy")

    with pytest.raises(ExceptionGroup, match="undo failed"):
        async with UndoStack() as undo:
            undo.push(lambda: done.append(1))
            undo.push(fail)
    assert done == [1]


async def test_cancellation_waits_for_the_undos() -> None:
    """A cancelled block still finishes its undos before the cancellation goes on."""
    done: list[str] = []
    entered = asyncio.Event()

    async def slow_undo() -> None:
        await asyncio.sleep(0)
        done.append("undone")

    async def body() -> None:
        async with UndoStack() as undo:
            undo.push(slow_undo)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["undone"]
