"""Pools that live on a host of their own, under names of their own."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import IPv4Network
from typing import Any

import pytest

from firebrick.network.pool import NativeSlotPool
from tests.support.lab import Lab, lab_host
from tests.support.leaks import LeakCheck
from tests.support.wait import wait_for

PREFIX = IPv4Network("10.111.0.0/16")

MakePool = Callable[..., NativeSlotPool]


@pytest.fixture
def instance(no_leaks: LeakCheck) -> str:
    """Four letters that no other test run on this machine has."""
    name = "t" + "".join(secrets.choice("0123456789abcdefghijklmnopqrstuvwxyz") for _ in range(3))
    no_leaks.watch(name)
    return name


@pytest.fixture
def lab(instance: str) -> Iterator[Lab]:
    with lab_host(instance) as lab:
        yield lab


@pytest.fixture
async def make_pool(lab: Lab, instance: str) -> AsyncIterator[MakePool]:
    made: list[NativeSlotPool] = []

    def make(size: int = 2, **options: Any) -> NativeSlotPool:
        pool = NativeSlotPool(instance=instance, prefix=PREFIX, size=size, **options)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        await pool.close()
    if made:
        await made[-1].destroy_all()


@pytest.fixture
async def pool(make_pool: MakePool) -> NativeSlotPool:
    pool = make_pool(2)
    await pool.open(frozenset())
    await wait_for(lambda: pool.free_count == 2)
    return pool
