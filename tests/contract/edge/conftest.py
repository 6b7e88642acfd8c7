"""The edge as it runs in production, on uvloop, before stub servers on loopback addresses of their own."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from tests.contract.edge.rig import Rig, open_rig
from tests.support.wait import wait_for


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """An edge with an empty catalog; at the end no connection, exchange or task of it may be left."""
    async with open_rig() as opened:
        yield opened
    await wait_for(lambda: asyncio.all_tasks() == {asyncio.current_task()}, status=asyncio.all_tasks)
