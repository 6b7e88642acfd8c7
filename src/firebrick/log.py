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
from typing import Any

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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


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
