"""What the terminal shows: one place for tables, errors and exit statuses."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from rich.console import Console

from firebrick.model.errors import FirebrickError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

P = ParamSpec("P")
R = TypeVar("R")


def fail(message: str, *, status: int = 1) -> NoReturn:
    """One line on standard error, then the exit status."""
    err.print(f"firebrick: {message}", markup=False, soft_wrap=True)
    sys.exit(status)


def reports_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Turn our errors into one line and status 1; everything else is a bug and keeps its traceback."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except FirebrickError as exc:
            fail(exc.message)
        except KeyboardInterrupt:
            sys.exit(130)

    return wrapper


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table in docker's habit: upper-case heads, three spaces between, nothing cut, so that it can be piped."""
    lines = [[column.upper() for column in columns], *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        print("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def pairs(option: str, values: Sequence[str]) -> dict[str, str]:
    """Read `KEY=VALUE` options. Exits with status 2 on one without `=`."""
    found = {}
    for value in values:
        key, sign, text = value.partition("=")
        if not sign or not key:
            fail(f"{option} takes KEY=VALUE, not '{value}'.", status=2)
        found[key] = text
    return found
