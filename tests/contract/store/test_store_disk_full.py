"""A database that has no room to grow says so, changes nothing, and goes on when there is room again. SQLite only: a
server of PostgreSQL has a disk of its own."""

from pathlib import Path

import pytest

from firebrick.model.errors import DiskFull
from firebrick.store.database import Database
from firebrick.store.migrate import migrate
from firebrick.store.teams import team_list
from tests.support.rows import insert_ground


async def test_a_full_disk_is_told_and_passes(tmp_path: Path) -> None:
    """The refusal names the disk and leaves nothing behind; the same write works when there is room."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/store.db")
    try:
        await migrate(database)
        async with database.write() as tx:
            await tx.exec_driver_sql("CREATE TABLE ballast (data BLOB)")
            pages = (await tx.exec_driver_sql("PRAGMA page_count")).scalar_one()
            # What SQLite raises beyond it is what it raises on a full disk.
            await tx.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        with pytest.raises(DiskFull, match=r"disk .* is full, so nothing was changed\. Free space"):
            async with database.write() as tx:
                await insert_ground(tx)
                await tx.exec_driver_sql("INSERT INTO ballast VALUES (zeroblob(100000))")
        async with database.read() as tx:
            assert await team_list(tx) == ()
        async with database.write() as tx:
            await tx.exec_driver_sql("PRAGMA max_page_count=1000000")
            await insert_ground(tx)
            await tx.exec_driver_sql("INSERT INTO ballast VALUES (zeroblob(100000))")
    finally:
        await database.close()
