"""May this connection go out, and by what: its address or the name it began with? Pure.

An allowed address is dialled as the guest asked for it. An allowed name is looked up again by us and its answer is
dialled, so that nothing a guest says about addresses (its hosts file, its own name server) counts.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

HTTP_PORT, TLS_PORT = 80, 443
NAMED_PORTS = (HTTP_PORT, TLS_PORT)
"""Where a name is looked for, and nowhere else: a server that speaks first would wait for ever beside us."""


class Basis(StrEnum):
    ADDRESS = "address"
    NAME = "name"


class Reason(StrEnum):
    """Why a connection was cut. The words are what the sandbox's owner reads."""

    NO_NAME = "it named no host, and its address is not allowed"
    NOT_ALLOWED = "this name is not allowed"
    MALFORMED = "its first bytes are no request that can be read in one way"
    TOO_SLOW = "it did not say in time whom it wants"
    UNRESOLVED = "this name has no IPv4 address"
    CLOSED = "this name leads to a private address"
    UNREACHABLE = "its server refused or did not answer"
    TOO_MANY = "the sandbox has too many connections"


@dataclass(frozen=True, slots=True)
class Allow:
    by: Basis


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`names` are as `model.egress.normal_name` makes them: `a.test`, `*.a.test` (all below it), `*`."""

    names: tuple[str, ...] = ()
    allow: tuple[IPv4Network, ...] = ()
    deny: tuple[IPv4Network, ...] = ()
    _exact: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A thousand names are looked through for each connection.
        object.__setattr__(self, "_exact", frozenset(self.names))

    def has_name(self, name: str) -> bool:
        """`name` in lower case, without a trailing dot."""
        if name in self._exact or "*" in self._exact:
            return True
        labels = name.split(".")
        return any("*." + ".".join(labels[begin:]) in self._exact for begin in range(1, len(labels)))

    def has_address(self, address: IPv4Address) -> bool:
        """Allow beats deny, and what nobody denies is allowed."""
        return is_within(address, self.allow) or not is_within(address, self.deny)


def is_within(address: IPv4Address, networks: Iterable[IPv4Network]) -> bool:
    return any(address in network for network in networks)


def decide(
    rules: Rules, closed: Iterable[IPv4Network], address: IPv4Address, port: int, name: str | None
) -> Allow | Refuse:
    """Whether a guest that dialled `address` and asked for `name` goes on.

    Args:
        closed: networks that no rule opens.
        name: as a `Head` tells it; None: it named nothing.
    """
    if rules.has_address(address) and not is_within(address, closed):
        return Allow(Basis.ADDRESS)
    if name is None or port not in NAMED_PORTS:
        return Refuse(Reason.NO_NAME)
    return Allow(Basis.NAME) if rules.has_name(name) else Refuse(Reason.NOT_ALLOWED)


def choose(found: Iterable[IPv4Address], closed: Iterable[IPv4Network], dialled: IPv4Address) -> list[IPv4Address]:
    """Which of a name's addresses to try, in this order: the guest's own choice first if it is one of them."""
    opened = [address for address in dict.fromkeys(found) if not is_within(address, tuple(closed))]
    return sorted(opened, key=lambda address: address != dialled)


def encode_rules(rules: Rules) -> str:
    return json.dumps({"names": rules.names, "allow": [*map(str, rules.allow)], "deny": [*map(str, rules.deny)]})


def decode_rules(text: str) -> Rules:
    """Raises ValueError, KeyError or TypeError for anything but what `encode_rules` wrote."""
    raw = json.loads(text)
    return Rules(
        names=tuple(raw["names"]),
        allow=tuple(IPv4Network(item) for item in raw["allow"]),
        deny=tuple(IPv4Network(item) for item in raw["deny"]),
    )
