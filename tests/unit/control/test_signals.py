"""Waking reconcilers by poke or time."""

import asyncio

from firebrick.control.background.reconciler import RETRY_S, Reconciler
from firebrick.control.signals import Signals, Waker
from tests.support.manual_clock import ManualClock
from tests.support.wait import wait_for


async def test_a_poke_before_the_wait_is_not_lost() -> None:
    """Poked while it worked, the waiter does not sleep."""
    waker, clock = Waker(), ManualClock()
    waker.poke()
    async with asyncio.timeout(5):
        await waker.wait(clock, 1000)


async def test_time_wakes_without_a_poke() -> None:
    """The wait ends when the clock reaches it, and not before."""
    waker, clock = Waker(), ManualClock()
    task = asyncio.ensure_future(waker.wait(clock, 10))
    await wait_for(lambda: clock.sleeper_count)
    clock.advance(9)
    await asyncio.sleep(0)
    assert not task.done()
    clock.advance(1)
    async with asyncio.timeout(5):
        await task


async def test_only_earlier_ends_wake_the_expiry() -> None:
    """A sandbox that ends after the planned wake does not poke."""
    signals, clock = Signals(), ManualClock()
    signals.expiry_wakes_at = clock.now()
    signals.expires(clock.now())
    task = asyncio.ensure_future(signals.expiry.wait(clock, 1))
    await wait_for(lambda: clock.sleeper_count)
    assert not task.done()
    signals.expiry_wakes_at = None
    signals.expires(clock.now())
    async with asyncio.timeout(5):
        await task


async def test_a_reconciler_survives_its_errors() -> None:
    """A round that raises is counted, shown and tried again."""
    clock, rounds = ManualClock(), 0

    async def round() -> float:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise ZeroDivisionError
        return 1000

    reconciler = Reconciler("test", round, clock)
    task = asyncio.ensure_future(reconciler.run())
    await wait_for(lambda: reconciler.status.failure_count == 1)
    assert "ZeroDivisionError" in reconciler.status.error
    await wait_for(lambda: clock.sleeper_count)
    clock.advance(RETRY_S)
    await wait_for(lambda: reconciler.status.round_count == 2 and not reconciler.status.error)
    task.cancel()
    await asyncio.wait((task,))
