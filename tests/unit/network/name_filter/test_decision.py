"""Which connections go out, and by what."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.model.egress import EVERYWHERE, normal_name
from firebrick.network.name_filter.decision import (
    Allow,
    Basis,
    Reason,
    Refuse,
    Rules,
    choose,
    decide,
    decode_rules,
    encode_rules,
)
from firebrick.network.name_filter.refusals import BURST_COUNT, REMEMBERED_COUNT, Refusals

CLOSED = (IPv4Network("10.0.0.0/8"), IPv4Network("169.254.0.0/16"))
RULES = Rules(names=("allowed.test", "*.below.test"), allow=(IPv4Network("1.2.3.0/24"), CLOSED[0]), deny=(EVERYWHERE,))
ELSEWHERE = "8.8.8.8"
BY_NAME, BY_ADDRESS = Allow(Basis.NAME), Allow(Basis.ADDRESS)
LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("address", "port", "name", "verdict"),
    [
        (ELSEWHERE, 80, "allowed.test", BY_NAME),
        (ELSEWHERE, 443, "a.below.test", BY_NAME),
        (ELSEWHERE, 443, "b.a.below.test", BY_NAME),
        ("10.0.0.1", 443, "allowed.test", BY_NAME),
        (ELSEWHERE, 443, "below.test", Refuse(Reason.NOT_ALLOWED)),
        (ELSEWHERE, 443, "notbelow.test", Refuse(Reason.NOT_ALLOWED)),
        (ELSEWHERE, 443, "x.allowed.test", Refuse(Reason.NOT_ALLOWED)),
        (ELSEWHERE, 443, "allowed.test.evil.test", Refuse(Reason.NOT_ALLOWED)),
        (ELSEWHERE, 443, None, Refuse(Reason.NO_NAME)),
        (ELSEWHERE, 8443, "allowed.test", Refuse(Reason.NO_NAME)),
        ("1.2.3.4", 22, None, BY_ADDRESS),
        ("1.2.3.4", 443, "other.test", BY_ADDRESS),
        ("10.0.0.1", 443, None, Refuse(Reason.NO_NAME)),
    ],
)
def test_a_name_or_an_address_opens_the_way(address: str, port: int, name: str | None, verdict: Allow | Refuse) -> None:
    """An allowed address needs no name, on any port; a name counts on 80 and 443; a closed address is never opened."""
    assert decide(RULES, CLOSED, IPv4Address(address), port, name) == verdict


def test_what_nobody_denies_is_allowed() -> None:
    """After an update that opened everything; but for what is always closed."""
    assert decide(Rules(), CLOSED, IPv4Address(ELSEWHERE), 22, None) == BY_ADDRESS
    assert decide(Rules(), CLOSED, IPv4Address("169.254.169.254"), 80, None) == Refuse(Reason.NO_NAME)


@given(st.lists(LABELS, min_size=2, max_size=5), st.integers(1, 4))
def test_a_wildcard_is_all_below_a_name_and_nothing_else(labels: list[str], cut: int) -> None:
    """`*` is every name; `*.x` is what has at least one label before `.x`."""
    name = ".".join(labels)
    assert Rules(names=("*",)).has_name(name)
    suffix = ".".join(labels[cut:])
    if suffix:
        assert Rules(names=(f"*.{suffix}",)).has_name(name)
        assert not Rules(names=(f"*.{suffix}",)).has_name(suffix)
        assert not Rules(names=(suffix,)).has_name(name)
    assert not Rules(names=(f"*.{name}",)).has_name("x" + name)


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("Example.COM.", "example.com"),
        ("*.Example.com", "*.example.com"),
        ("*", "*"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.BÜCHER.example", "*.xn--bcher-kva.example"),
        ("localhost", "localhost"),
    ],
)
def test_a_rule_has_one_spelling(entry: str, name: str) -> None:
    """The one that a client's head has: ASCII, lower case, no trailing dot."""
    assert normal_name(entry) == name


def test_of_a_names_addresses_private_ones_are_left_out() -> None:
    """The guest's own choice comes first if it is one of them."""
    found = [IPv4Address(text) for text in ("10.0.0.1", "1.1.1.1", "2.2.2.2", "1.1.1.1")]
    assert choose(found, CLOSED, IPv4Address("2.2.2.2")) == [found[2], found[1]]
    assert choose(found, CLOSED, IPv4Address("10.0.0.1")) == [found[1], found[2]]
    assert choose(found[:1], CLOSED, IPv4Address("10.0.0.1")) == []


def test_rules_survive_their_file() -> None:
    """What is not one is refused."""
    assert decode_rules(encode_rules(RULES)) == RULES
    for text in ("", "{}", "[]", '{"names": [], "allow": ["x"], "deny": []}'):
        with pytest.raises((ValueError, KeyError, TypeError)):
            decode_rules(text)


def test_a_refusal_is_told_once_a_minute_with_how_many_there_were() -> None:
    """Whatever a guest does, its owner reads few lines, and the memory of them is bounded."""
    refusals = Refusals()
    assert [refusals.note(("a",), second) for second in (0.0, 1.0, 2.0, 61.0, 62.0)] == [1, None, None, 3, None]
    flood = Refusals()
    told = [flood.note((number,), 1000.0) for number in range(1000)]
    assert sum(count is not None for count in told) == BURST_COUNT
    later = [flood.note((number,), 10_000.0 + 10 * number) for number in range(1000)]
    assert all(later)
    assert len(flood._told) == REMEMBERED_COUNT
