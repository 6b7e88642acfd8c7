"""Migrations and the two doors of a database."""

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from firebrick.model.errors import Internal
from firebrick.store.database import Database
from firebrick.store.migrate import migrate
from firebrick.store.schema import metadata
from firebrick.store.teams import team_fetch_by_name, team_insert
from tests.support.rows import make_team


async def test_migrations_lead_to_the_schema(empty: Database) -> None:
    """A migrated database differs in nothing from the schema module."""

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with empty.write() as tx:
        assert await tx.run_sync(differences) == []


async def test_migrating_twice_at_once_is_safe(database_url: str) -> None:
    """Two control planes that start together on an empty database both find it migrated."""
    first, second = Database(database_url), Database(database_url)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(migrate(first))
            group.create_task(migrate(second))
        await migrate(first)
        async with second.read() as tx:
            assert (await tx.execute(text("SELECT count(*) FROM alembic_version"))).scalar_one() == 1
    finally:
        await first.close()
        await second.close()


async def test_a_failed_transaction_leaves_nothing(empty: Database) -> None:
    """What was written in a block that raises is not there afterwards."""
    with pytest.raises(ZeroDivisionError):
        async with empty.write() as tx:
            await team_insert(tx, make_team())
            raise ZeroDivisionError
    async with empty.read() as tx:
        assert await team_fetch_by_name(tx, "a") is None


async def test_errors_tell_callers_nothing_of_sql(empty: Database) -> None:
    """A refused statement is Internal; the driver's words are in the detail only."""
    with pytest.raises(Internal) as caught:
        async with empty.write() as tx:
            await tx.execute(text("SELECT nothing FROM nowhere"))
    assert "nowhere" not in caught.value.message
    assert "nowhere" in caught.value.detail


async def test_a_reader_does_not_wait_for_a_writer(empty: Database) -> None:
    """While a transaction is open, others read the state before it."""
    async with empty.write() as tx:
        await team_insert(tx, make_team())
        async with asyncio.timeout(5), empty.read() as reader:
            assert await team_fetch_by_name(reader, "a") is None
