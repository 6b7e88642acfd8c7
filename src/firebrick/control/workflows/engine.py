"""Run steps in order; when one fails, undo what was done, newest first.

A step that raised may have had its effect (a lost answer), so its own undo runs too: every undo must cope with an
effect that is not there. When an undo fails, the ones before it are not run: they would give up what the failed one
still needs (a reservation while the sandbox may still run). What is left is plain in the store, and
`finish_sandboxes` goes on from there; so it does after a crash.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

from firebrick.control.failpoint import reached
from firebrick.log import get_log

log = get_log("control.workflow")

Context = TypeVar("Context")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[Context]):
    """`act` may be repeated; `undo` too, and also when `act` had no effect."""

    name: str
    act: Callable[[Context], Awaitable[None]]
    undo: Callable[[Context], Awaitable[None]] | None = None


class UndoFailed(Exception):
    """An undo did not succeed; the sandbox is left to the reconciler. Chained to why the workflow failed."""


async def run_workflow(
    name: str, steps: Sequence[Step[Context]], context: Context, *, durations_ms: dict[str, float] | None = None
) -> None:
    """Do every step, or none. `durations_ms` is filled in as steps end, the failing one included.

    Raises: what the failing step raised, after the undos (also on cancellation; the undos are shielded from it).
    """
    started = perf_counter()
    durations_ms = {} if durations_ms is None else durations_ms
    for index, step in enumerate(steps):
        before = perf_counter()
        try:
            reached(f"{name}.{step.name}.before")
            await step.act(context)
            reached(f"{name}.{step.name}.after")
        except BaseException as exc:
            durations_ms[step.name] = _ms_since(before)
            log.info("workflow.failed", workflow=name, step=step.name, error=repr(exc))
            await _undo_shielded(name, steps[: index + 1], context)
            raise
        durations_ms[step.name] = _ms_since(before)
    log.info("workflow.done", workflow=name, duration_ms=_ms_since(started), steps_ms=durations_ms)


async def _undo_shielded(name: str, done: Sequence[Step[Context]], context: Context) -> None:
    task = asyncio.ensure_future(_undo(name, done, context))
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            # Cancelled while undoing: finish the undo first; the caller's own exception is raised after it.
            continue
        except UndoFailed:
            break


async def _undo(name: str, done: Sequence[Step[Context]], context: Context) -> None:
    for step in reversed(done):
        if step.undo is None:
            continue
        try:
            await step.undo(context)
        except Exception as exc:
            # Whatever went wrong, the rest must not be undone, and the first error is the one to report.
            log.exception("workflow.undo_failed", workflow=name, step=step.name)
            raise UndoFailed(step.name) from exc


def _ms_since(start: float) -> float:
    return round((perf_counter() - start) * 1000, 2)
