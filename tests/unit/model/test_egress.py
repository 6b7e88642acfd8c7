"""What E2B's network options mean, and which are refused."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from firebrick.model.egress import CLOSED, EVERYWHERE, OPEN, check_network, egress_of
from firebrick.model.errors import Invalid


def test_nothing_said_is_open() -> None:
    """No option, no rule."""
    assert egress_of(None, None) == egress_of(True, {}) == OPEN
    assert OPEN.is_open


def test_no_internet_access_denies_everywhere() -> None:
    """As E2B has it: equal to denying 0.0.0.0/0."""
    assert egress_of(False, None) == egress_of(None, {"denyOut": ["0.0.0.0/0"]}) == CLOSED


def test_addresses_networks_and_name_servers() -> None:
    """An address is a network of one; host bits are dropped; IPv6 says nothing, for a sandbox has none."""
    found = egress_of(
        False, {"allowOut": ["8.8.8.8", "1.2.3.4/8"], "denyOut": ["::/0", "9.9.9.9"], "dnsServers": ["1.1.1.1"]}
    )
    assert found.allow == (IPv4Network("8.8.8.8/32"), IPv4Network("1.0.0.0/8"))
    assert found.deny == (IPv4Network("9.9.9.9/32"), EVERYWHERE)
    assert found.dns == (IPv4Address("1.1.1.1"),)


def test_domains_are_names_and_open_the_nodes_name_servers() -> None:
    """In one spelling, each once; unless the owner chose name servers, if only none."""
    options: dict[str, Any] = {"allowOut": ["Example.com.", "8.8.8.8", "example.com", "*.bücher.test", "*"]}
    found = egress_of(False, options)
    assert found.names == ("example.com", "*.xn--bcher-kva.test", "*")
    assert found.allow == (IPv4Network("8.8.8.8/32"),)
    assert found.default_dns
    assert not egress_of(False, options | {"dnsServers": []}).default_dns
    assert not egress_of(False, {"allowOut": ["8.8.8.8"]}).default_dns
    assert check_network(options, allow_internet_access=False, secure=True) == ()


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ({"denyOut": ["nonsense"]}, "invalid denied CIDR nonsense"),
        ({"denyOut": ["1.2.3.4/33"]}, "invalid denied CIDR 1.2.3.4/33"),
        ({"allowOut": ["no domain!"]}, "invalid allowed address no domain!"),
        ({"allowOut": ["*.*.com"]}, "invalid allowed address"),
        ({"allowOut": ["a.*.com"]}, "invalid allowed address"),
        ({"allowOut": ["*.8.8.8.8"]}, "invalid allowed address"),
        ({"allowOut": ["8.8.8.8.8"]}, "invalid allowed address"),
        ({"allowOut": ["https://example.com"]}, "invalid allowed address"),
        ({"allowOut": ["example.com:443"]}, "invalid allowed address"),
        ({"allowOut": ["-a.com"]}, "invalid allowed address"),
        ({"allowOut": ["a" * 64 + ".com"]}, "invalid allowed address"),
        ({"allowOut": ["a\u200d.com"]}, "invalid allowed address"),
        ({"allowOut": [""]}, "invalid allowed address"),
        ({"allowOut": ["."]}, "invalid allowed address"),
        ({"denyOut": ["example.com", "0.0.0.0/0"]}, "invalid denied CIDR example.com"),
        ({"allowOut": ["example.com"], "denyOut": ["10.0.0.0/8"]}, "ALL_TRAFFIC"),
        ({"dnsServers": ["::1"]}, "not an IPv4 address"),
        ({"dnsServers": ["1.1.1.1"] * 11}, "at most 10"),
        ({"denyOut": ["1.1.1.1"] * 1001}, "at most 1000"),
        ({"maskRequestHost": "bücher.test"}, "ASCII"),
        ({"maskRequestHost": "a\r\nb"}, "ASCII"),
        ({"httpsPorts": [0]}, "port"),
        ({"httpsPorts": [49983]}, "port"),
    ],
)
def test_nonsense_is_refused(network: dict[str, Any], told: str) -> None:
    """By what was wrong."""
    with pytest.raises(Invalid, match=told):
        check_network(network, allow_internet_access=None, secure=True)


def test_no_public_traffic_needs_a_secured_agent() -> None:
    """Otherwise the agent's port would be the way in."""
    with pytest.raises(Invalid, match="'secure' flag"):
        check_network({"allowPublicTraffic": False}, allow_internet_access=None, secure=False)


def test_what_is_missing_is_named_once() -> None:
    """Rules and proxies are understood and not here."""
    network = {
        "allowOut": ["example.com", "*.example.org", "8.8.8.8"],
        "rules": {"example.com": [{}]},
        "egressProxy": {"address": "proxy:1080"},
        "maskRequestHost": "localhost:${PORT}",
    }
    assert check_network(network, allow_internet_access=False, secure=True) == (
        "network.rules",
        "network.egressProxy",
    )
