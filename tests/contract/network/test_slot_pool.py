"""What every slot pool promises, run over the simulated and the native one."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Network

import pytest

from firebrick.model.egress import CLOSED
from firebrick.model.errors import NoCapacity
from firebrick.network.base import Slot, SlotPool
from firebrick.network.pool import NativeSlotPool
from firebrick.network.sim import SimSlotPool
from tests.support.lab import lab_host
from tests.support.wait import wait_for

SIZE = 3
MakePool = Callable[[], SlotPool]


@pytest.fixture(
    params=[
        "sim",
        pytest.param(
            "native",
            marks=[
                pytest.mark.needs_root,
                pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: needs root (run the tests with sudo)"),
            ],
        ),
    ]
)
async def make_pool(request: pytest.FixtureRequest) -> AsyncIterator[MakePool]:
    """Makes pools over the same slots, as successive processes do."""
    made: list[SlotPool] = []
    instance = "c" + secrets.token_hex(2)[:3]

    def make() -> SlotPool:
        native = NativeSlotPool(instance=instance, prefix=IPv4Network("10.111.0.0/16"), size=SIZE)
        made.append(native if request.param == "native" else SimSlotPool(size=SIZE))
        return made[-1]

    if request.param == "sim":
        yield make
        return
    with lab_host(instance):
        yield make
        for pool in made:
            await pool.close()
        await made[-1].destroy_all()


async def opened(make_pool: MakePool, in_use: frozenset[int] = frozenset()) -> SlotPool:
    pool = make_pool()
    await pool.open(in_use)
    await wait_for(lambda: pool.free_count == SIZE - len(in_use))
    return pool


async def test_a_slot_is_nobody_elses_while_it_is_taken(make_pool: MakePool) -> None:
    """Slots that are out at the same time differ in index, address and namespace."""
    pool = await opened(make_pool)
    slots = [await pool.acquire() for _ in range(SIZE)]
    assert len({slot.index for slot in slots}) == len({slot.address for slot in slots}) == SIZE
    assert pool.free_count == 0


async def test_an_empty_pool_says_so_with_numbers(make_pool: MakePool) -> None:
    """When all slots are taken, NoCapacity comes at once and says how many there are and what to do."""
    pool = await opened(make_pool)
    for _ in range(SIZE):
        await pool.acquire()
    with pytest.raises(NoCapacity, match=r"3 slots, 3 taken, 0 ready.*slot_count") as caught:
        async with asyncio.timeout(1):
            await pool.acquire()
    assert caught.value.retryable


async def test_what_is_released_gets_ready_again(make_pool: MakePool) -> None:
    """A released slot can be taken again, with the same address."""
    pool = await opened(make_pool)
    slots = [await pool.acquire() for _ in range(SIZE)]
    await pool.release(slots[1])
    assert await pool.acquire() == slots[1]


async def test_release_is_idempotent(make_pool: MakePool) -> None:
    """Released twice, a slot is handed out once."""
    pool = await opened(make_pool)
    slot = await pool.acquire()
    await pool.release(slot)
    await pool.release(slot)
    await wait_for(lambda: pool.free_count == SIZE)
    assert len({(await pool.acquire()).index for _ in range(SIZE)}) == SIZE


async def test_slots_in_use_are_not_given_out_until_released(make_pool: MakePool) -> None:
    """What living machines hold when the pool opens comes back only by release."""
    before = await opened(make_pool)
    held = await before.acquire()
    await before.close()

    pool = await opened(make_pool, frozenset({held.index}))
    others: list[Slot] = [await pool.acquire() for _ in range(SIZE - 1)]
    assert held not in others
    assert pool.slot(held.index) == held
    await pool.release(held)
    assert await pool.acquire() == held


async def test_the_internet_can_be_closed_for_a_taken_slot(make_pool: MakePool) -> None:
    """`restrict` may be repeated, and the slot is released as any other."""
    pool = await opened(make_pool)
    slot = await pool.acquire()
    await pool.restrict(slot, CLOSED)
    await pool.restrict(slot, CLOSED)
    await pool.release(slot)
    await wait_for(lambda: pool.free_count == SIZE)


async def test_destroy_all_may_be_repeated(make_pool: MakePool) -> None:
    """After destroy_all nothing is ready; a second one finds nothing to do."""
    pool = await opened(make_pool)
    await pool.acquire()
    await pool.destroy_all()
    await pool.destroy_all()
    assert pool.free_count == 0
