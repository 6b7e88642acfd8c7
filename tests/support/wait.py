"""Wait for a condition, never for time."""

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

SLOWNESS = float(os.environ.get("FIREBRICK_TEST_SLOWNESS", "10" if "FIREBRICK_IN_LAB" in os.environ else "1"))
"""How much longer everything may take here than on hardware: 10 in an emulated machine."""
LIFETIME_S = int(300 * SLOWNESS)
"""Of a sandbox that a test ends itself."""
CEILING_S = 20.0
POLL_S = 0.005


async def wait_for(
    condition: Callable[[], Any | Awaitable[Any]],
    *,
    timeout_s: float = CEILING_S,
    status: Callable[[], object] | None = None,
) -> Any:
    """Poll until `condition()` is true and return its value; fail with `status()` after `timeout_s`."""
    timeout_s *= SLOWNESS
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            shown = f"; status: {status()}" if status is not None else ""
            raise AssertionError(f"Condition not met within {timeout_s} s{shown}")
        # Where all is slow a look costs more, too.
        await asyncio.sleep(POLL_S * SLOWNESS)


def wait_for_sync(condition: Callable[[], Any], *, timeout_s: float = CEILING_S) -> Any:
    """The same for tests without a loop."""
    timeout_s *= SLOWNESS
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"Condition not met within {timeout_s} s")
        time.sleep(POLL_S)
