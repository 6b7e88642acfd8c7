"""What stretches the time of E2B's own suite on a slow machine stretches what it should, and nothing else."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2b.api.client.models import ConnectSandbox

from tests.support import official_suite_patience as patience


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SLOWNESS", 10.0)


def test_a_lifetime_is_longer_on_the_wire_only() -> None:
    """The test goes on seeing the number that it gave."""
    asked = ConnectSandbox(timeout=5)
    stretched = patience._with_longer_timeout(ConnectSandbox.to_dict)
    assert (stretched(asked), asked.timeout) == ({"timeout": 50}, 5)


@pytest.mark.parametrize(("folder", "seconds"), [("tests", 10.0), ("venv/lib", 1.0)])
def test_only_the_suites_own_waiting_is_longer(monkeypatch: pytest.MonkeyPatch, folder: str, seconds: float) -> None:
    """What the client and its libraries wait for stays as it is."""
    monkeypatch.setattr(patience, "TESTS", "/suite/tests")
    slept: list[float] = []
    sleep = patience._longer_for_tests(slept.append)
    exec(compile("sleep(1.0)", f"/suite/{folder}/test_this.py", "exec"), {"sleep": sleep})
    assert slept == [seconds]


def test_both_ways_of_sleeping_go_on_working() -> None:
    """The blocking one and the one that is awaited."""
    ways: list[Callable[..., Any]] = [time.sleep, asyncio.sleep]
    blocking, awaited = (patience._longer_for_tests(way) for way in ways)
    blocking(0)
    assert asyncio.run(awaited(0, "done")) == "done"
