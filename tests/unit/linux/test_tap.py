"""How a namespace's link is read, and joined to a tap."""

from firebrick.linux.tap import as_argument, default_gateway, joining_rules

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t1600FEA9\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t1400FEA9\t00000000\t0001\t0\t0\t0\tFCFFFFFF\t0\t0\t0
"""


def test_the_gateway_is_the_default_routes() -> None:
    assert default_gateway(ROUTES, "eth0") == "169.254.0.22"
    assert default_gateway(ROUTES, "eth1") == ""
    assert default_gateway(ROUTES.splitlines()[0], "eth0") == ""


def test_each_way_goes_to_the_other_end() -> None:
    rules = " ".join(joining_rules("eth0", "tap0").split())
    assert 'hook ingress device "eth0" priority 0; policy accept; fwd to "tap0"' in rules
    assert 'hook ingress device "tap0" priority 0; policy accept; fwd to "eth0"' in rules
    assert rules.startswith("create table netdev firebrick_tap0")


def test_high_ids_pass_as_they_are() -> None:
    """Users of machines lie above 2^31 on most hosts: the kernel sees the same 32 bits."""
    for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xEFFF0000):
        assert as_argument(value) & 0xFFFFFFFF == value
        assert -(1 << 31) <= as_argument(value) < 1 << 31
