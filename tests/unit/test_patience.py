"""What waits follow `patience`: with little of it they end at once, with enough of it they do not."""

import asyncio
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from firebrick.catalog.base import Route, run_waker
from firebrick.clock import SystemClock
from firebrick.edge.upstream import SandboxLinks
from firebrick.model.errors import DeadlineExceeded, NoCapacity
from firebrick.model.ids import SandboxId, new_machine_id, new_sandbox_id
from firebrick.network.pool import ACQUIRE_WAIT_S, NativeSlotPool
from firebrick.runtimes.machines import START_TIMEOUT_S, DetachedMachines

LITTLE = 0.0001


async def test_a_wake_by_traffic() -> None:
    """Refused when its time is over, which is told."""

    async def wake(_: SandboxId) -> None:
        await asyncio.sleep(0.05)

    with pytest.raises(DeadlineExceeded):
        await run_waker(wake, new_sandbox_id(), patience=LITTLE)
    await run_waker(wake, new_sandbox_id(), patience=1.0)


async def test_a_connection_into_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the edge's limits say."""
    route = Route(sandbox_id=new_sandbox_id(), machine_id=new_machine_id(), address="10.0.0.1")

    async def reach(self: SandboxLinks, port: int) -> Any:
        await asyncio.sleep(0.05)
        return cast(Any, SimpleNamespace())

    monkeypatch.setattr(SandboxLinks, "_reach", reach)
    with pytest.raises(TimeoutError):
        await SandboxLinks(route, SystemClock(), connect_timeout_s=0.001).connect(80)
    await SandboxLinks(route, SystemClock(), connect_timeout_s=5.0).connect(80)


async def test_a_slot_that_is_being_made() -> None:
    pool = NativeSlotPool(instance="ptnc", prefix=IPv4Network("10.111.0.0/24"), size=1, patience=LITTLE)
    pool._missing = {0}
    with pytest.raises(NoCapacity, match=f"within {ACQUIRE_WAIT_S * LITTLE:g} s"):
        await pool.acquire()


def test_the_end_of_a_machine(tmp_path: Path) -> None:
    """Ends and freezes may take longer where starts may, and never less than usual."""

    def patience(start_timeout_s: float) -> float:
        made = DetachedMachines(
            state_dir=tmp_path, runtime_root=tmp_path, parent="p", oom_statuses=frozenset(),
            start_timeout_s=start_timeout_s,
        )  # fmt: skip
        return made._patience

    assert [patience(START_TIMEOUT_S * factor) for factor in (0.1, 1, 10)] == [1, 1, 10]
