"""One database, SQLite or PostgreSQL, behind two doors: `read` (no transaction kept) and `write` (one transaction).

SQLite has one writer at a time. The write door is therefore a pool of one connection there: writers queue in
order in this process instead of spinning in the busy handler, and BEGIN IMMEDIATE takes the lock at once, so
that a transaction that has read never fails when it comes to write.

Durability on SQLite: WAL with synchronous=NORMAL. A commit survives the death of any process. Power loss may lose
the last commits (never the file's integrity); it also ends every sandbox, so nothing that lives is forgotten.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from firebrick.model.errors import Internal, Unavailable

BUSY_TIMEOUT_MS = 10_000
READERS = 4
"""Connections for reading on SQLite; each is a thread, and more than a few only take turns at the interpreter."""
SQLITE_ERROR = 1
POSTGRES_CONNECTIONS = 16
POOL_TIMEOUT_S = 10.0


class Database:
    """Connections of one database. Make it in `main` or with `open_database`; close it."""

    def __init__(self, url: str) -> None:
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            self._reader = _sqlite_engine(url, size=READERS, begin="BEGIN")
            self._writer = _sqlite_engine(url, size=1, begin="BEGIN IMMEDIATE")
        else:
            self._writer = create_async_engine(
                url, pool_size=POSTGRES_CONNECTIONS, max_overflow=0, pool_timeout=POOL_TIMEOUT_S, pool_pre_ping=True
            )
            self._reader = self._writer
        self._autocommit = self._reader.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading; each statement sees its own moment.

        Raises: Unavailable, Internal — see `write`.
        """
        with _translated():
            async with self._autocommit.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed when the block ends well, else rolled back.

        Raises:
            Unavailable: the database did not answer, or refused for a reason that may pass. Retryable.
            Internal: the statement itself is wrong.
        """
        with _translated():
            async with self._writer.begin() as connection:
                yield connection

    async def close(self) -> None:
        await self._reader.dispose()
        await self._writer.dispose()


class _translated:
    """Turns what SQLAlchemy raises into our errors, with the driver's words for operators only."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, PoolTimeout | OSError) or (isinstance(exc, DBAPIError) and _may_pass(exc)):
            raise Unavailable("The control plane's database does not answer. Try again.", detail=str(exc)) from exc
        if isinstance(exc, SQLAlchemyError):
            raise Internal("The control plane's database refused a statement.", detail=str(exc)) from exc


def _may_pass(exc: DBAPIError) -> bool:
    # sqlite3 raises OperationalError for wrong SQL too; only its error code tells that from a busy or full disk.
    if getattr(exc.orig, "sqlite_errorcode", None) == SQLITE_ERROR:
        return False
    return exc.connection_invalidated or type(exc).__name__ in ("OperationalError", "InterfaceError", "DBAPIError")


def _sqlite_engine(url: str, *, size: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=size, max_overflow=0, pool_timeout=POOL_TIMEOUT_S)

    def on_connect(connection: Any, _record: Any) -> None:
        # NOTE: the driver must not open transactions by itself; `on_begin` does, with the right kind of lock.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: Any) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", on_begin)
    return engine
