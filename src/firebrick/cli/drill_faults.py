"""The faults of `firebrick drill`, each with what must hold after it. They act on an instance of their own."""

import os
import resource
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from firebrick.cli.drill_disk import fill, free
from firebrick.cli.drill_instance import Drilled, Lost, Strike
from firebrick.control.workflows import (
    sandbox_create,
    sandbox_fork,
    sandbox_kill,
    sandbox_pause,
    sandbox_resume,
    snapshot_create,
)
from firebrick.control.workflows.engine import Step
from firebrick.model.sandbox import EndReason

IDLE_COUNT = 10_000
SPARE_DESCRIPTORS = 200
LOCKED_S = 3.0
DOWN_S = 4.0
"""Long enough for a process to be started again, and to fail."""
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
    ("create", "start", "after", "control"), ("kill, behind", "stop", "before", "node"),
    ("pause", "freeze", "after", "node"), ("resume", "publish", "before", "edge"),
    ("snapshot", "take", "after", "control"), ("fork", "start", "before", "node"),
}  # fmt: skip
FULL_SAMPLE = {
    ("create", "start", "before"), ("pause", "freeze", "before"), ("snapshot", "take", "before"),
}  # fmt: skip


def all_faults() -> Iterator[Fault]:
    """The whole matrix, then the faults of the machine."""
    for operation, (workflow, steps) in STEPS.items():
        for step in steps:
            for when in ("before", "after"):
                for role in ROLES:
                    yield _death(operation, f"{workflow}.{step.name}.{when}", role,
                                 is_sample=(operation, step.name, when, role) in SAMPLE)  # fmt: skip
    for operation, (workflow, steps) in STEPS.items():
        for step in steps:
            for when in ("before", "after"):
                yield _disk_fills(operation, f"{workflow}.{step.name}.{when}",
                                  is_sample=(operation, step.name, when) in FULL_SAMPLE)  # fmt: skip
    for role in ROLES:
        yield Fault(name=f"disk full, then kill -9 of {role}", during="rest", strike=partial(_dies_on_full_disk, role))
    yield Fault(name="kill -9 of the supervisor", during="rest", strike=_supervisor_dies)
    yield Fault(name="reboot, simulated", during="rest", strike=_reboot, is_sample=True)
    yield Fault(name=f"database locked for {LOCKED_S:g} s", during="create", strike=_database_locked, is_sample=True)
    yield Fault(name=f"{IDLE_COUNT} idle connections to the edge", during="create", strike=_idle_connections,
                is_sample=True)  # fmt: skip


def _death(operation: str, point: str, role: str, *, is_sample: bool) -> Fault:
    def strike(drilled: Drilled) -> str:
        return drilled.operate(operation.partition(",")[0], at=point, role=role)

    return Fault(name=f"kill -9 of {role}", during=_where(operation, point), strike=strike, is_sample=is_sample)


def _where(operation: str, point: str) -> str:
    return f"{operation}: {'.'.join(point.split('.')[-2:])}"


def _disk_fills(operation: str, point: str, *, is_sample: bool) -> Fault:
    def strike(drilled: Drilled) -> str:
        answered: list[str] = []

        def judge(answer: httpx.Response | None) -> None:
            answered.append(_judge_on_full_disk(drilled, answer))

        full = Strike(act=lambda: fill(drilled.data_dir), judge=judge, undo=lambda: free(drilled.data_dir))
        drilled.operate(operation.partition(",")[0], at=point, strike=full)
        return answered[0]

    return Fault(name="disk full", during=_where(operation, point), strike=strike, is_sample=is_sample)


def _judge_on_full_disk(drilled: Drilled, answer: httpx.Response | None) -> str:
    """It works all the same, or it is told what is wrong; and what runs goes on."""
    drilled.ask_canary()
    if answer is None:
        raise Lost("no answer while the disk was full")
    if drilled.worked(answer):
        return f"answered {answer.status_code}"
    text = answer.text
    told = answer.json()[0]["error"] if answer.is_success else answer.json()
    if told["code"] not in (503, 507) or "disk" not in told["message"] or "full" not in told["message"]:
        raise Lost(f"a full disk is told as {text[:200]}")
    return f"answered {told['code']}"


def _dies_on_full_disk(role: str, drilled: Drilled) -> str:
    fill(drilled.data_dir)
    try:
        os.kill(drilled.pid(role), signal.SIGKILL)
        drilled.sleep(DOWN_S)
    finally:
        free(drilled.data_dir)
    return drilled.operate("create")


def _reboot(drilled: Drilled) -> str:
    """What runs is told as lost with its node; what is paused, with its memory or without, comes back with its disk."""
    ran = (drilled.canary, drilled.new_sandbox())
    paused = {drilled.new_sandbox(): True, drilled.new_sandbox(): False}
    for sandbox_id, memory in paused.items():
        drilled.write(sandbox_id, sandbox_id)
        drilled.pause(sandbox_id, memory=memory)
    drilled.reboot()
    for sandbox_id in ran:
        reason = drilled.wait_ended(sandbox_id)["endReason"]
        if reason != EndReason.NODE_LOST:
            raise Lost(f"a sandbox that ran is told as ended by {reason}, not {EndReason.NODE_LOST}")
    for sandbox_id, memory in paused.items():
        if drilled.read(sandbox_id) != sandbox_id:
            raise Lost(f"one that was paused {'with' if memory else 'without'} its memory lost its file")
    drilled.operate("create")
    return f"{len(ran)} told as {EndReason.NODE_LOST}, {len(paused)} paused came back"


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
