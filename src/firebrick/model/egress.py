"""Where a sandbox may connect to, and what of E2B's network options is known here. Pure.

The options travel and are stored as they were asked, in E2B's spelling; what the node needs of them is an `Egress`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any

import idna

from firebrick.model.errors import Invalid

EVERYWHERE = IPv4Network("0.0.0.0/0")
RULES_COUNT = 1_000
"""Networks and addresses in one list."""
DNS_COUNT = 10
AGENT_PORT = 49983

_DOMAIN = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_MASK = re.compile(r"[A-Za-z0-9._\[\]:-]{1,253}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """`allow` and `names` beat `deny`; `dns` servers answer on port 53 whatever is denied. Private ranges, the host and
    other sandboxes are closed whatever is allowed.

    `names` are as `normal_name` makes them, and something is denied when there are any; HTTP on port 80 and TLS on
    port 443 that ask for one of them pass. `default_dns`: the node's name servers are among `dns` too.
    """

    allow: tuple[IPv4Network, ...] = ()
    deny: tuple[IPv4Network, ...] = ()
    dns: tuple[IPv4Address, ...] = ()
    names: tuple[str, ...] = ()
    default_dns: bool = False

    @property
    def is_open(self) -> bool:
        """Nothing is denied, so nothing needs a rule."""
        return not self.deny


OPEN = Egress()
CLOSED = Egress(deny=(EVERYWHERE,))


def egress_of(allow_internet_access: bool | None, network: Mapping[str, Any] | None) -> Egress:
    """What checked options mean. `allow_internet_access: false` denies everywhere."""
    options = network or {}
    deny = [*_networks(options.get("denyOut") or ()), *([EVERYWHERE] if allow_internet_access is False else [])]
    allowed = options.get("allowOut") or ()
    names = tuple(dict.fromkeys(normal_name(entry) for entry in allowed if not _is_network(entry)))
    return Egress(
        allow=tuple(_networks(entry for entry in allowed if _is_network(entry))),
        deny=tuple(deny),
        dns=tuple(IPv4Address(item) for item in options.get("dnsServers") or ()),
        names=names,
        # Names are worth little without a name server; who gives a list, even an empty one, has chosen.
        default_dns=bool(names) and options.get("dnsServers") is None,
    )


def normal_name(entry: str) -> str:
    """The one spelling of a domain of `allowOut`: ASCII (IDNA 2008), lower case, no trailing dot; `*` and `*.x` as they
    are. Raises Invalid."""
    wildcard, star, name = entry.rpartition("*.")
    text = name.removesuffix(".")
    if entry == "*":
        return entry
    try:
        text = text.lower() if text.isascii() else idna.encode(text, uts46=True).decode()
    except idna.IDNAError:
        text = ""
    if wildcard or _DOMAIN.match(text) is None:
        raise Invalid(f"invalid allowed address {entry}: an IP address, a CIDR or a domain")
    return star + text


def _networks(entries: Any) -> list[IPv4Network]:
    # A sandbox has no IPv6, so a rule about it has nothing to say.
    found = (ip_network(entry, strict=False) for entry in entries)
    return [network for network in found if isinstance(network, IPv4Network)]


def check_network(network: Mapping[str, Any], *, allow_internet_access: bool | None, secure: bool) -> tuple[str, ...]:
    """Check options as they came; return the names of those that mean something which this version cannot do.

    Raises: Invalid — in E2B's words, where it has some.
    """
    denies_all = allow_internet_access is False
    for entry in _texts(network, "denyOut"):
        if not _is_network(entry):
            raise Invalid(f"invalid denied CIDR {entry}")
        denies_all = denies_all or ip_network(entry, strict=False) == EVERYWHERE
    for entry in _texts(network, "allowOut"):
        if _is_network(entry):
            continue
        normal_name(entry)
        if not denies_all:
            raise Invalid(
                "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all "
                "other traffic."
            )
    _check_dns(network)
    _check_ports(network)
    if network.get("allowPublicTraffic") is False and not secure:
        raise Invalid(
            "You cannot create a sandbox without public access unless you enable secure envd access via 'secure' flag."
        )
    return tuple(f"network.{name}" for name in ("rules", "egressProxy") if network.get(name))


def _texts(network: Mapping[str, Any], name: str) -> list[str]:
    found = network.get(name) or []
    if len(found) > RULES_COUNT:
        raise Invalid(f"network.{name}: at most {RULES_COUNT} entries")
    return list(found)


def _check_dns(network: Mapping[str, Any]) -> None:
    servers = network.get("dnsServers") or []
    if len(servers) > DNS_COUNT:
        raise Invalid(f"network.dnsServers: at most {DNS_COUNT} servers")
    for server in servers:
        try:
            IPv4Address(server)
        except ValueError as exc:
            raise Invalid(f"network.dnsServers: '{server}' is not an IPv4 address") from exc


def _check_ports(network: Mapping[str, Any]) -> None:
    mask = network.get("maskRequestHost")
    if mask and _MASK.match(mask.replace("${PORT}", "1")) is None:
        raise Invalid("network.maskRequestHost must be an ASCII host name, with ${PORT} where the port belongs")
    for port in network.get("httpsPorts") or []:
        if not 0 < port < 65536 or port == AGENT_PORT:
            raise Invalid(f"network.httpsPorts: {port} is not a port from 1 to 65535 other than {AGENT_PORT}")


def _is_network(entry: str) -> bool:
    try:
        ip_network(entry, strict=False)
    except ValueError:
        return False
    return True
