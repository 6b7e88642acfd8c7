"""SQLite without a thread: a connection that looks like aiosqlite's to SQLAlchemy and runs each call where it is.

aiosqlite sends every call to a thread and back, four times a statement. Our statements take 20 to 300 µs, so that
traffic was most of the cost of a request (a fetch by id: 0.80 ms with threads, 0.25 ms without). What could block the
event loop for long is waiting for another process's write lock; `Database.write` waits for that by trying again.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

BUSY_TIMEOUT_MS = 5
"""Only readers that meet a checkpoint's moment ever wait this long."""
PRAGMAS = (
    f"busy_timeout={BUSY_TIMEOUT_MS}",
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "foreign_keys=ON",
)


class InlineCursor:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._cursor = connection.cursor()

    async def __aenter__(self) -> "InlineCursor":
        return self

    @property
    def description(self) -> Any:
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid

    @property
    def arraysize(self) -> int:
        return self._cursor.arraysize

    async def execute(self, operation: str, parameters: Any = ()) -> None:
        self._cursor.execute(operation, parameters)

    async def executemany(self, operation: str, parameters: Sequence[Any]) -> None:
        self._cursor.executemany(operation, parameters)

    async def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    async def close(self) -> None:
        self._cursor.close()


class InlineConnection:
    """The part of `aiosqlite.Connection` that SQLAlchemy 2.1 uses. The driver opens no transaction by itself."""

    def __init__(self, path: str) -> None:
        self._connection: sqlite3.Connection | None = sqlite3.connect(path, isolation_level=None)
        for pragma in PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}")

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ValueError("no active connection")
        return self._connection

    def cursor(self) -> InlineCursor:
        return InlineCursor(self._open)

    async def create_function(self, name: str, count: int, function: Callable[..., Any], **options: Any) -> None:
        self._open.create_function(name, count, function, **options)

    async def commit(self) -> None:
        self._open.commit()

    async def rollback(self) -> None:
        self._open.rollback()

    async def close(self) -> None:
        self.stop()

    def stop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
