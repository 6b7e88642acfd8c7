"""Who is behind what happens now: set where a request is authenticated, read where a change is written down.

A context variable, because the one who asked is of no concern to the steps between. Whatever no request asked for
(an expiry, a repair) is done by `system`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

SYSTEM = "system"


@dataclass(slots=True, kw_only=True)
class Request:
    """`actor` is fit to be shown to the team: a key's mask, a user's address, `admin`. `object_id` is what the change
    is about, filled in by who mints the id; `is_audited` says that the change wrote its audit line itself."""

    actor: str = SYSTEM
    object_id: str = ""
    is_audited: bool = False


_REQUEST: ContextVar[Request | None] = ContextVar("firebrick_request", default=None)


@contextmanager
def acting(request: Request) -> Iterator[Request]:
    """Everything in this block is done for `request`."""
    token = _REQUEST.set(request)
    try:
        yield request
    finally:
        _REQUEST.reset(token)


def current_actor() -> str:
    request = _REQUEST.get()
    return SYSTEM if request is None else request.actor


def note_object(object_id: str) -> None:
    """The change that is under way is about this object."""
    request = _REQUEST.get()
    if request is not None:
        request.object_id = object_id


def note_audited() -> None:
    request = _REQUEST.get()
    if request is not None:
        request.is_audited = True
