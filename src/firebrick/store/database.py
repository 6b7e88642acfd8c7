"""One database, SQLite or PostgreSQL, behind two doors: `read` (no transaction kept) and `write` (one transaction).

SQLite has one writer at a time. The write door is therefore a pool of one connection there: writers queue in
order in this process, and BEGIN IMMEDIATE takes the lock at once, so that a transaction that has read never fails
when it comes to write. Another process's lock (a migration, a backup) is waited for without blocking the loop.

Durability on SQLite: WAL with synchronous=NORMAL. A commit survives the death of any process. Power loss may lose
the last commits (never the file's integrity); it also ends every sandbox, so nothing that lives is forgotten.
"""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from firebrick.model.errors import DiskFull, Internal, Unavailable
from firebrick.store.inline_sqlite import InlineConnection

SQLITE_READERS = 8
"""Connections for reading on SQLite. A statement runs to its end where it stands, so few are ever used at once."""
SQLITE_ERROR, SQLITE_BUSY, SQLITE_FULL = 1, 5, 13
SQLITE_IOERR_SHMOPEN, SQLITE_IOERR_SHMSIZE = 10 | 18 << 8, 10 | 19 << 8
LOCK_WAIT_S = 10.0
LOCK_RETRY_S = 0.005
POSTGRES_CONNECTIONS = 16
POOL_TIMEOUT_S = 10.0


class Database:
    """Connections of one database. Whoever makes it closes it."""

    def __init__(self, url: str) -> None:
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            self._writer = _sqlite_engine(url, size=1)
            # No BEGIN is ever sent on these, so each statement is a transaction of its own.
            self._reader = _sqlite_engine(url, size=SQLITE_READERS)
        else:
            self._writer = create_async_engine(
                url, pool_size=POSTGRES_CONNECTIONS, max_overflow=0, pool_timeout=POOL_TIMEOUT_S, pool_pre_ping=True
            )
            self._reader = self._writer.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading; each statement sees its own moment.

        Raises: Unavailable, Internal — see `write`.
        """
        with _translated():
            async with self._reader.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed when the block ends well, else rolled back.

        Raises:
            DiskFull: there is no room to write it down. Retryable.
            Unavailable: the database did not answer, or refused for a reason that may pass. Retryable.
            Internal: the statement itself is wrong.
        """
        with _translated():
            async with self._writer.begin() as connection:
                if self.is_sqlite:
                    await _take_sqlite_lock(connection)
                yield connection

    async def close(self) -> None:
        await self._reader.dispose()
        await self._writer.dispose()


async def _take_sqlite_lock(connection: AsyncConnection) -> None:
    for _ in range(int(LOCK_WAIT_S / LOCK_RETRY_S)):
        try:
            await connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        except OperationalError as exc:
            if getattr(exc.orig, "sqlite_errorcode", SQLITE_ERROR) & 0xFF != SQLITE_BUSY:
                raise
            await asyncio.sleep(LOCK_RETRY_S)
    raise Unavailable("The control plane's database is locked by another process. Try again.")


def _sqlite_engine(url: str, *, size: int) -> AsyncEngine:
    path = make_url(url).database or ""

    async def connect() -> Any:
        return InlineConnection(path)

    return create_async_engine(
        url, async_creator=connect, pool_size=size, max_overflow=0, pool_timeout=POOL_TIMEOUT_S
    )  # fmt: skip


class _translated:
    """Turns what SQLAlchemy raises into our errors, with the driver's words for operators only."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, OSError | DBAPIError) and _is_out_of_space(exc):
            raise DiskFull(
                "The disk that holds the control plane's database is full, so nothing was changed. Free space there, "
                "then try again.",
                detail=str(exc),
            ) from exc
        if isinstance(exc, PoolTimeout | OSError) or (isinstance(exc, DBAPIError) and _may_pass(exc)):
            raise Unavailable("The control plane's database does not answer. Try again.", detail=str(exc)) from exc
        if isinstance(exc, SQLAlchemyError):
            raise Internal("The control plane's database refused a statement.", detail=str(exc)) from exc


def _may_pass(exc: DBAPIError) -> bool:
    # sqlite3 raises OperationalError for wrong SQL too; only its error code tells that from a busy or full disk.
    if getattr(exc.orig, "sqlite_errorcode", None) == SQLITE_ERROR:
        return False
    return exc.connection_invalidated or type(exc).__name__ in ("OperationalError", "InterfaceError", "DBAPIError")


def _is_out_of_space(exc: OSError | DBAPIError) -> bool:
    if isinstance(exc, OSError):
        return exc.errno in (errno.ENOSPC, errno.EDQUOT)
    # The file that SQLite shares with its other connections has no room: told as a failed write.
    code = getattr(exc.orig, "sqlite_errorcode", SQLITE_ERROR)
    return code & 0xFF == SQLITE_FULL or code in (SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_SHMOPEN)
