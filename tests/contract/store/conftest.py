"""Every test here runs on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from firebrick.store.database import Database
from firebrick.store.migrate import migrate
from tests.support.postgres import missing, postgres_database, postgres_server
from tests.support.rows import insert_ground


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[Path]:
    reason = missing()
    if reason is not None:
        pytest.skip(f"store on PostgreSQL NOT TESTED: {reason}")
    with postgres_server() as socket_dir:
        yield socket_dir


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "sqlite":
            yield f"sqlite+aiosqlite:///{tmp_path}/store.db"
        else:
            yield stack.enter_context(postgres_database(request.getfixturevalue("postgres_socket")))


@pytest.fixture
async def empty(database_url: str) -> AsyncIterator[Database]:
    """A migrated database without a row."""
    database = Database(database_url)
    try:
        await migrate(database)
        yield database
    finally:
        await database.close()


@pytest.fixture
async def database(empty: Database) -> Database:
    """With a team, a template with a ready build, and a node."""
    async with empty.write() as tx:
        await insert_ground(tx)
    return empty
