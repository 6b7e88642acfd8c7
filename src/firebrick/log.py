"""Structured logging: events with fields, one JSON object a line, on standard error.

`log = get_log("node")` then `log.info("sandbox.started", sandbox_id=…, boot_ms=…)`. Ids that hold for a whole
request or task are bound once with `bound(sandbox_id=…)` and appear in every line below it. Never log what a
guest printed, an API key or a token.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TextIO, cast

import structlog


def configure(level: str, role: str) -> None:
    """Set up the process's one log. Call it once, from main/ or the CLI."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, Unfailing(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


class Unfailing:
    """A stream whose writes never raise: a disk too full for a line of a log must not stop the work that it tells of.

    What was not written is counted, and told by a line of its own as soon as one can be written again.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._failed_count = 0

    def write(self, text: str) -> int:
        try:
            if self._failed_count:
                self._stream.write(f'{{"event": "log.writes_failed", "count": {self._failed_count}}}\n')
                self._failed_count = 0
            self._stream.write(text)
        except OSError:
            self._failed_count += 1
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._failed_count += 1


def get_log(name: str) -> Any:
    return structlog.get_logger(component=name)


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    with structlog.contextvars.bound_contextvars(**fields):
        yield


@contextmanager
def timed(log: Any, event: str, **fields: Any) -> Iterator[None]:
    """Log `event` with its duration in ms when the block ends, however it ends."""
    start = perf_counter()
    ok = False
    try:
        yield
        ok = True
    finally:
        log.info(event, ok=ok, duration_ms=round((perf_counter() - start) * 1000, 1), **fields)


def bound_value(name: str) -> str:
    """What `bound` says of that name here; empty when nothing."""
    return str(structlog.contextvars.get_contextvars().get(name, ""))
