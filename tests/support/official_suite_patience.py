"""A plugin for E2B's own test suite, which stays as it is: what it means by a second is longer on a slow machine.

By `SUITE_SLOWNESS` are stretched: deadlines of tests, the usual request timeout, lifetimes of sandboxes as they go
over the wire, and the suite's own waiting: so a test that sees a sandbox end still sees it end. Not stretched are
timeouts of commands, which tests hold against what `sleep` takes inside. It imports nothing of ours: it runs in the
suite's environment.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import e2b.connection_config
import pytest
from e2b.api.client.models import ConnectSandbox, NewSandbox, SandboxForkRequest, SandboxTimeoutRequest

SLOWNESS = float(os.environ.get("SUITE_SLOWNESS", "1"))
TESTS = str(Path(__file__).parent / "tests")
LIFETIMES: tuple[Any, ...] = (ConnectSandbox, NewSandbox, SandboxForkRequest, SandboxTimeoutRequest)


def pytest_configure() -> None:
    # They ask the module at each request.
    e2b.connection_config.REQUEST_TIMEOUT *= SLOWNESS
    for model in LIFETIMES:
        model.to_dict = _with_longer_timeout(model.to_dict)
    # NOTE: before the tests are imported, some of which take the function's name for themselves.
    time.sleep = _longer_for_tests(time.sleep)
    asyncio.sleep = _longer_for_tests(asyncio.sleep)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        own = item.get_closest_marker("timeout")
        if own is not None and own.args:
            item.add_marker(pytest.mark.timeout(own.args[0] * SLOWNESS), append=False)


def _with_longer_timeout(to_dict: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    def stretched(model: Any) -> dict[str, Any]:
        body = to_dict(model)
        if isinstance(body.get("timeout"), int):
            body["timeout"] = round(body["timeout"] * SLOWNESS)
        return body

    return stretched


def _longer_for_tests(sleep: Callable[..., Any]) -> Callable[..., Any]:
    def stretched(delay: float, *rest: Any, **named: Any) -> Any:
        is_test = sys._getframe(1).f_code.co_filename.startswith(TESTS)
        return sleep(delay * SLOWNESS if is_test else delay, *rest, **named)

    return stretched
