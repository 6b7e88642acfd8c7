"""The faults of `firebrick drill`, each with what must hold after it. They act on an instance of their own."""

import os
import resource
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from firebrick.cli.drill_instance import Drilled
from firebrick.control.workflows import (
    sandbox_create,
    sandbox_fork,
    sandbox_kill,
    sandbox_pause,
    sandbox_resume,
    snapshot_create,
)
from firebrick.control.workflows.engine import Step

IDLE_COUNT = 10_000
SPARE_DESCRIPTORS = 200
LOCKED_S = 3.0
ROLES = ("control", "node", "edge")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`strike` does the damage and the check; it raises Lost with what was lost. `is_sample`: part of the short run."""

    name: str
    during: str
    strike: Callable[[Drilled], str]
    is_sample: bool = False


STEPS: dict[str, tuple[str, tuple[Step[Any], ...]]] = {
    "create": ("sandbox_create", sandbox_create.STEPS),
    "kill": ("sandbox_kill.begin", sandbox_kill.BEGIN),
    "kill, behind": ("sandbox_kill.finish", sandbox_kill.FINISH),
    "pause": ("sandbox_pause.begin", sandbox_pause.BEGIN),
    "pause, behind": ("sandbox_pause.settle", sandbox_pause.SETTLE),
    "resume": ("sandbox_resume", sandbox_resume.STEPS),
    "snapshot": ("snapshot_create", snapshot_create.STEPS),
    "fork": ("sandbox_fork", sandbox_fork.STEPS),
}
SAMPLE = {
    ("create", "start", "after", "control"), ("create", "start", "before", "node"),
    ("kill", "mark", "after", "control"), ("kill, behind", "stop", "before", "node"),
}  # fmt: skip


def all_faults() -> Iterator[Fault]:
    """The whole matrix, then the faults of the machine."""
    for operation, (workflow, steps) in STEPS.items():
        for step in steps:
            for when in ("before", "after"):
                for role in ROLES:
                    yield _death(operation, f"{workflow}.{step.name}.{when}", role,
                                 is_sample=(operation, step.name, when, role) in SAMPLE)  # fmt: skip
    yield Fault(name="kill -9 of the supervisor", during="rest", strike=_supervisor_dies)
    yield Fault(name=f"database locked for {LOCKED_S:g} s", during="create", strike=_database_locked, is_sample=True)
    yield Fault(name=f"{IDLE_COUNT} idle connections to the edge", during="create", strike=_idle_connections)


def _death(operation: str, point: str, role: str, *, is_sample: bool) -> Fault:
    def strike(drilled: Drilled) -> str:
        return drilled.operate(operation.partition(",")[0], die_at=point, role=role)

    where = point.split(".", 1)[1] if operation in ("create", "resume", "snapshot", "fork") else point.split(".", 2)[2]
    return Fault(name=f"kill -9 of {role}", during=f"{operation}: {where}", strike=strike, is_sample=is_sample)


def _supervisor_dies(drilled: Drilled) -> str:
    os.kill(drilled.pid("supervisor"), signal.SIGKILL)
    drilled.up()
    return drilled.operate("create")


def _database_locked(drilled: Drilled) -> str:
    holder = sqlite3.connect(drilled.data_dir / "firebrick.db", isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        answer = drilled.try_create_in_background()
        drilled.sleep(LOCKED_S)
        holder.execute("COMMIT")
        answer.result(60)
    finally:
        holder.close()
    return drilled.operate("create")


def _idle_connections(drilled: Drilled) -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = min(IDLE_COUNT, hard - SPARE_DESCRIPTORS)
    try:
        with ExitStack() as stack:
            for number in range(wanted):
                # One source address has some 28,000 ports; a few more spare the kernel's search for a free one.
                link = socket.create_connection(
                    ("127.0.0.1", drilled.edge_port), timeout=30, source_address=(f"127.0.0.{2 + number % 8}", 0)
                )
                stack.callback(link.close)
            drilled.operate("create")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return f"{wanted} connections held"
