"""The first bytes of a connection, and the name in them. Pure; every byte is a guest's.

Readers are strict: what two programs could read in two ways is malformed, because the server behind may be the other
program. They look at a prefix again and again as it grows, so prefix and number of looks are bounded by the caller.
"""

import re
from dataclasses import dataclass

HEAD_BYTES = 32 * 1024
"""The most of a connection that is read before it is decided."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}\Z")


@dataclass(frozen=True, slots=True)
class Incomplete:
    """So far it may become a head."""


@dataclass(frozen=True, slots=True)
class Head:
    """A whole head. `name` is in lower case and without a trailing dot; None: it names nothing, or an address."""

    name: str | None


@dataclass(frozen=True, slots=True)
class Malformed:
    """It is no head, or one that can be read in two ways."""

    what: str


Reading = Incomplete | Head | Malformed


def head_of_host(text: bytes) -> Head | Malformed:
    """A host as it stands in a head: a name, an IPv4 address, or an IPv6 address in brackets."""
    if re.fullmatch(rb"\[[0-9A-Fa-f:.]{2,45}\]", text):
        return Head(None)
    try:
        name = text.decode("ascii").lower().removesuffix(".")
    except UnicodeDecodeError:
        return Malformed("a name that is not ASCII")
    if _NAME.match(name) is None:
        return Malformed("a name that no host can have")
    # Resolvers take `127.1`, `0x7f000001` and `1` for addresses; no domain ends in a label of digits.
    last = name.rpartition(".")[2]
    return Head(None if last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last) else name)
