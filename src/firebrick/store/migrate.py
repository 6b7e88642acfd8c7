"""Bring a database to the newest schema. Run at every start; a no-op when nothing is new."""

from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import Connection, text

from firebrick.store.database import Database

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_KEY = 0x66697265  # "fire": any constant will do; it only has to be the same in every replica


def _upgrade(connection: Connection) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def migrate(database: Database) -> None:
    """Run what is missing, in one transaction. Safe when several control planes start at once: the second waits
    (PostgreSQL: advisory lock; SQLite: the write lock) and finds nothing to do."""
    async with database.write() as tx:
        if not database.is_sqlite:
            await tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        await tx.run_sync(_upgrade)
