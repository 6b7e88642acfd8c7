"""Which sandbox and port a request is for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.edge.target import (
    BadTarget,
    Target,
    host_name,
    is_control_route,
    parse_port,
    target_of,
)
from firebrick.model.ids import SandboxId

DOMAIN = "sandbox.test"
ID = SandboxId("iabcdefghij0123456789")


def where(host: str, id_header: str | None = None, port_header: str | None = None) -> Target | None:
    return target_of(host_name(host), DOMAIN, id_header, port_header)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "00",
        "049983",
        "+49983",
        "-1",
        "٤٩٩٨٣",
        "0xC34F",
        "49983 ",
        " 1",
        "99999",
        "65536",
        "1" * 400,
        "1_0",
        "1\n",
    ],
)
def test_odd_ports_are_refused(text: str) -> None:
    """A port is ASCII digits from 1 to 65535 and nothing that some parser also takes for one."""
    with pytest.raises(BadTarget):
        parse_port(text)
    with pytest.raises(BadTarget):
        where("localhost", ID, text)


@given(st.text(max_size=8) | st.integers().map(str))
def test_a_port_is_its_own_text(text: str) -> None:
    """What is checked is what is dialled: a port that is accepted is written in exactly one way."""
    try:
        port = parse_port(text)
    except BadTarget:
        return
    assert str(port) == text
    assert 1 <= port <= 65535


@given(st.text(max_size=80))
def test_any_host_is_read_or_refused(text: str) -> None:
    """No Host header makes the parser fail in any other way, and one that is read names one place."""
    try:
        target = where(f"{text}.{DOMAIN}")
    except BadTarget:
        return
    if target is not None:
        label = text.lower().split(".")[0]
        assert label.split("-")[:2] == [str(target.port), target.sandbox_id]


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_host_and_headers_must_agree(by_host: int, by_header: int) -> None:
    """A request never reaches another port than the one that either source alone would name."""
    host = f"{by_host}-{ID}.{DOMAIN}"
    if by_host == by_header:
        assert where(host, ID, str(by_header)) == Target(sandbox_id=ID, port=by_host)
    else:
        with pytest.raises(BadTarget):
            where(host, ID, str(by_header))


def test_forms_of_hosts() -> None:
    """The host form in its spellings, and hosts that are shared."""
    expected = Target(sandbox_id=ID, port=3000)
    for host in (
        f"3000-{ID}.{DOMAIN}",
        f"3000-{ID}.{DOMAIN}:3002",
        f"3000-{ID.upper()}.SANDBOX.test.",
        f"3000-{ID}-6532622b.{DOMAIN}",
        f"3000-{ID}.eu.{DOMAIN}:443",
    ):
        assert where(host) == expected, host
    for host in ("localhost:3002", "127.0.0.1", "[::1]:3002", DOMAIN, f"sandbox.{DOMAIN}", "edge_1.internal"):
        assert where(host) is None, host
        assert where(host, ID, "3000") == expected, host
        assert where(host, f"{ID}-00000000", "3000") == expected, host


@pytest.mark.parametrize(
    "host",
    [
        f"{ID}.{DOMAIN}",
        f"x.{DOMAIN}",
        f"-{ID}.{DOMAIN}",
        f"3000-.{DOMAIN}",
        f"03000-{ID}.{DOMAIN}",
        f"3000-{ID}_.{DOMAIN}",
        f"user@3000-{ID}.{DOMAIN}",
        f"3000-{ID}.{DOMAIN}:99999",
        f"3000-{ID}.{DOMAIN}:x",
        f"3000-{ID}\x00.{DOMAIN}",
        f"3000-{ID}..{DOMAIN}..",
        "ö.test",
        "",
        " ",
        "a b",
        "a,b",
        "a/b",
        f"3000-a-b-c.{DOMAIN}",
    ],
)
def test_hosts_that_are_refused(host: str) -> None:
    """Unreadable hosts are refused, below the domain even when the headers are there."""
    with pytest.raises(BadTarget):
        where(host)
    with pytest.raises(BadTarget):
        where(host, ID, "3000")


def test_headers_alone_need_each_other() -> None:
    """One routing header without the other is refused, as is an id with other characters."""
    for headers in ((ID, None), (None, "3000"), ("I", "3000"), ("../x", "1"), ("", "1"), (ID, "")):
        with pytest.raises(BadTarget):
            where("localhost", *headers)


@pytest.mark.parametrize(
    "path",
    [
        "/init",
        "/init/",
        "//init",
        "/./init",
        "/files/../init",
        "/%69nit",
        "/%2569nit",
        "/init?x=1",
        "/init#x",
        "/INIT",
        "/init;x",
        "/init%00",
        "/in%09it",
        "\\init",
        "/x/%2e%2e/init",
        "/x%2f..%2finit",
        "//host/init",
        "/%2e/init",
        "/firebrick/freeze",
        "/firebrick",
        "//firebrick//freeze",
        "/freeze",
        "/unfreeze",
        "/collapse",
        "/fsfreeze",
        "/fsthaw",
        "/upgrade",
        "/init%3fx",
        "/../../init",
        "///x/../init",
    ],
)
def test_control_routes_in_disguise(path: str) -> None:
    """However it is written, a path that a server could take for a control route is one."""
    assert is_control_route(path)


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/files?path=/init", "/files/init", "/process.Process/Start", "/initial", "*", "/%", "/metrics"],
)
def test_other_routes_pass(path: str) -> None:
    """The agent's public routes are not mistaken for control routes."""
    assert not is_control_route(path)
