"""What stands in a URL: ids, filters, bounds. Each is checked here, once, before anything else sees it."""

import re
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Path, Query
from pydantic import BeforeValidator

from firebrick.control.sandboxes import not_found
from firebrick.model.errors import Invalid
from firebrick.model.ids import SandboxId, is_sandbox_id
from firebrick.model.sandbox import SandboxState

WORD = re.compile(r"[a-z0-9]{1,64}\Z")
MAX_FILTER_PAIRS = 100
MAX_IDS = 100


def parse_sandbox_id(text: str) -> SandboxId:
    """Accepts `<id>` and the older `<id>-<client id>`.

    Raises: NotFound — a plain word that is no id of ours (clients rely on that); Invalid — anything else.
    """
    sandbox_id = text.partition("-")[0]
    if is_sandbox_id(sandbox_id):
        return SandboxId(sandbox_id)
    if WORD.match(sandbox_id):
        raise not_found(sandbox_id)
    raise Invalid("Invalid sandbox ID")


async def _sandbox_id(sandboxID: Annotated[str, Path()]) -> SandboxId:
    return parse_sandbox_id(sandboxID)


SandboxIdOf = Annotated[SandboxId, Depends(_sandbox_id)]


def parse_metadata_filter(text: str | None) -> dict[str, str]:
    """Decode `metadata=`: clients encode it three times; the query's own decoding has taken one layer off.

    Raises: Invalid.
    """
    if not text:
        return {}
    pairs: dict[str, str] = {}
    for pair in _decoded(text).split("&"):
        parts = pair.split("=")
        if len(parts) != 2:
            raise Invalid("invalid key value pair in query: metadata must be key=value pairs joined with &")
        pairs[_decoded(parts[0])] = _decoded(parts[1])
    if len(pairs) > MAX_FILTER_PAIRS:
        raise Invalid(f"metadata: at most {MAX_FILTER_PAIRS} pairs can be filtered by")
    return pairs


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as exc:
        raise Invalid("metadata: the percent-encoding is not valid UTF-8") from exc


def parse_states(text: str | None) -> frozenset[SandboxState]:
    """`running`, `paused` or both, joined with a comma; none given means both."""
    names = [name for name in (text or "").split(",") if name] or ["running", "paused"]
    states: set[SandboxState] = set()
    for name in names:
        if name == "running":
            states.add(SandboxState.RUNNING)
        elif name == "paused":
            states |= {SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING}
        else:
            raise Invalid("state: must be 'running', 'paused' or both, joined with a comma")
    return frozenset(states)


def parse_template_filter(text: str | None) -> str | None:
    if text is None or not text.strip():
        return None
    if ":" in text:
        raise Invalid("template: give a template's id or name, without a tag")
    return text.strip().lower()


def parse_sandbox_ids(text: str) -> list[SandboxId]:
    """Comma-separated, without repeats; unknown words are left out, as an unknown sandbox would be."""
    words = list(dict.fromkeys(word.strip().partition("-")[0] for word in text.split(",")))
    if len(words) > MAX_IDS:
        raise Invalid(f"sandbox_ids: at most {MAX_IDS} ids at once")
    return [SandboxId(word) for word in words if is_sandbox_id(word)]


def _written_out(value: object) -> object:
    if isinstance(value, str) and not value.lstrip("+-").replace(".", "", 1).isdecimal():
        return value
    raise ValueError("must be a time as in RFC 3339, not a number")


Moment = Annotated[datetime, BeforeValidator(_written_out)]
"""Numbers would be taken as seconds or milliseconds, by their size."""


def as_utc(moment: datetime | None) -> datetime | None:
    """A time without a zone is taken as UTC."""
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as exc:
        raise Invalid("The time is out of range") from exc


LATEST_UNIX_S = 32_503_680_000
"""The year 3000: what comes after is a typing mistake, and beyond 9999 Python has no dates."""

UnixSeconds = Annotated[int | None, Query(ge=0, le=LATEST_UNIX_S)]
UnixMillis = Annotated[int, Query(ge=0, le=LATEST_UNIX_S * 1000)]


def from_unix(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
