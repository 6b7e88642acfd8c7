"""Fork a sandbox into n new ones.

    + snapshot   a private snapshot of it; it goes on as it was               - deleted
    + start      n creates from that snapshot, each of which may fail alone   (each create undoes itself)
    + release    the private snapshot is deleted

A crash leaves the forks that were started and a private snapshot, which `sweep_snapshots` deletes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from firebrick.control.platform import Platform
from firebrick.control.workflows.engine import Step, run_workflow
from firebrick.control.workflows.sandbox_create import SandboxCreate, create_sandbox
from firebrick.control.workflows.snapshot_create import SnapshotCreate, create_snapshot
from firebrick.control.workflows.snapshot_delete import delete_snapshot
from firebrick.model.errors import FirebrickError
from firebrick.model.sandbox import Sandbox
from firebrick.store.snapshots import snapshot_mark_deleting

CONCURRENCY = 8


@dataclass(slots=True, kw_only=True)
class SandboxFork:
    """`wishes` are the rows of the forks; `results` has the sandbox or the error of each, in their order. `note_failed`
    writes down why one was not created."""

    platform: Platform
    snapshot: SnapshotCreate
    wishes: Sequence[Sandbox]
    note_failed: Callable[[SandboxCreate, FirebrickError], Awaitable[None]]
    results: list[Sandbox | FirebrickError] = field(default_factory=list)


async def _snapshot(fork: SandboxFork) -> None:
    if fork.snapshot.taken is None:
        await create_snapshot(fork.snapshot)


async def _undo_snapshot(fork: SandboxFork) -> None:
    snapshot = fork.snapshot.snapshot
    async with fork.platform.database.write() as tx:
        await snapshot_mark_deleting(tx, (snapshot.snapshot_id,))
    await delete_snapshot(fork.platform, snapshot)


async def _start(fork: SandboxFork) -> None:
    limit = asyncio.Semaphore(CONCURRENCY)

    async def start(wish: Sandbox) -> Sandbox | FirebrickError:
        async with limit:
            create = SandboxCreate(platform=fork.platform, sandbox=wish, only_node=fork.snapshot.snapshot.node_id)
            try:
                return await create_sandbox(create)
            except FirebrickError as exc:
                await fork.note_failed(create, exc)
                return exc

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(start(wish)) for wish in fork.wishes]
    fork.results = [task.result() for task in tasks]


async def _release(fork: SandboxFork) -> None:
    """Only marked here: the reconciler deletes it, so that a fork does not wait for it."""
    async with fork.platform.database.write() as tx:
        await snapshot_mark_deleting(tx, (fork.snapshot.snapshot.snapshot_id,))
    fork.platform.signals.snapshots.poke()


STEPS: tuple[Step[SandboxFork], ...] = (
    Step(name="snapshot", act=_snapshot, undo=_undo_snapshot),
    Step(name="start", act=_start),
    Step(name="release", act=_release),
)


async def fork_sandbox(fork: SandboxFork) -> list[Sandbox | FirebrickError]:
    """Run the workflow; answers one sandbox or error for each wish.

    Raises: what taking the snapshot raises; then nothing was started.
    """
    with fork.platform.working(fork.snapshot.snapshot.snapshot_id):
        await run_workflow("sandbox_fork", STEPS, fork)
    return fork.results
