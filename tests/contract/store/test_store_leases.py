"""A lease has one holder at a time."""

import asyncio
from datetime import UTC, datetime, timedelta

from firebrick.model.errors import Conflict
from firebrick.store.database import Database
from firebrick.store.leases import lease_take

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def take(database: Database, holder: str, *, at_s: float = 0, name: str = "sweep") -> bool:
    now = NOW + timedelta(seconds=at_s)
    try:
        async with database.write() as tx:
            return await lease_take(tx, name, holder, now=now, until=now + timedelta(seconds=30))
    except Conflict:
        return False


async def test_a_lease_is_kept_and_runs_out(empty: Database) -> None:
    """Others get it when it has run out, not before; who lost it is told; another lease is another's."""
    assert await take(empty, "a")
    assert not await take(empty, "b", at_s=29)
    assert await take(empty, "a", at_s=29)
    assert not await take(empty, "b", at_s=58)
    assert await take(empty, "b", at_s=58, name="other")
    assert await take(empty, "b", at_s=59)
    assert not await take(empty, "a", at_s=60)


async def test_a_crowd_gets_one_holder(empty: Database) -> None:
    """Of many at once, when there is no row yet and when it has run out."""
    for at_s in (0, 100):
        got = await asyncio.gather(*(take(empty, f"h{number}", at_s=at_s) for number in range(8)))
        assert got.count(True) == 1
