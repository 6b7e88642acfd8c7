"""Heads: what is understood, what is refused, what is written anew."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.edge.heads import BadHead, parse_request, parse_response

NAMES = st.from_regex(r"X-[A-Za-z0-9]{1,9}", fullmatch=True)
VALUES = st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True)


def head(lines: str, first: str = "GET /x HTTP/1.1", host: str = "Host: a") -> bytes:
    return "\r\n".join([first, host, *([lines] if lines else []), "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "raw",
    [
        head("Host: b"),
        head("host: a"),
        head("", host="X: y"),
        head("Content-Length: 1\r\nContent-Length: 1"),
        head("Content-Length: 1\r\nContent-Length: 2"),
        head("Content-Length: 1, 1"),
        head("Content-Length: -1"),
        head("Content-Length: +1"),
        head("Content-Length: 0x1"),
        head("Content-Length: 9999999999999999999999"),
        head("Content-Length: 1\r\nTransfer-Encoding: chunked"),
        head("Transfer-Encoding: chunked\r\nContent-Length: 1"),
        head("Transfer-Encoding: xchunked"),
        head("Transfer-Encoding: chunked, chunked"),
        head("Transfer-Encoding: gzip, chunked"),
        head("Transfer-Encoding: identity"),
        head("Transfer-Encoding: \x0bchunked"),
        head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        head("Transfer-Encoding : chunked"),
        head("Transfer-Encoding: chunked", first="POST / HTTP/1.0"),
        head("X: a\r\n b"),
        head("X: a\x00b"),
        head("X: a\rb"),
        head("X: a\nY: b"),
        head(" X: a"),
        head("X a"),
        head(": a"),
        head("E2b-Sandbox-Id: a\r\nE2b-Sandbox-Id: b"),
        head("", first="GET /\x80 HTTP/1.1"),
        head("", first="GET /a b HTTP/1.1"),
        head("", first="GET x HTTP/1.1"),
        head("", first="GET http://b/ HTTP/1.1"),
        head("", first="GET ftp://a/ HTTP/1.1"),
        head("", first="GET / HTTP/1.2"),
        head("", first="GET / HTTP/2.0"),
        head("", first="GET /"),
        head("", first="CONNECT a:1 HTTP/1.1"),
        head("", first="PRI * HTTP/2.0"),
        head("", first="get / HTTP/1.1"),
        head("Expect: 200-ok"),
        b"\x16\x03\x01\r\n\r\n",
        head("", first="GET http://u@a/ HTTP/1.1"),
        head("", first="GET /a#/../init HTTP/1.1"),
        head("", first="GET http://a/#x HTTP/1.1"),
    ],
)
def test_refused_heads(raw: bytes) -> None:
    """A head that servers are known to read in different ways is refused."""
    with pytest.raises(BadHead):
        parse_request(raw)


def test_written_anew() -> None:
    """What goes to the sandbox has one framing, one Host, and none of what was meant for us."""
    raw = head(
        "Content-Length: 5\r\nConnection: close, x-a\r\nX-A: 1\r\nX-B:  2 \r\nX-Firebrick-C: 3\r\nX-Forwarded-For: 4",
        first="POST http://a/p?q HTTP/1.1",
    )
    parsed = parse_request(raw)
    assert parsed.to_upstream(keep_forwarded=False) == (
        b"POST /p?q HTTP/1.1\r\nHost: a\r\nX-B: 2\r\nContent-Length: 5\r\n\r\n"
    )
    assert b"X-Forwarded-For: 4" in parsed.to_upstream(keep_forwarded=True)


@given(st.dictionaries(NAMES, VALUES, max_size=8))
def test_headers_pass_unchanged(headers: dict[str, str]) -> None:
    """End-to-end headers arrive with the name and value that were sent."""
    names = {name.lower() for name in headers}
    if len(names) < len(headers) or any(name.startswith("x-f") for name in names):
        return
    raw = head("\r\n".join(f"{name}: {value}" for name, value in headers.items()))
    again = parse_request(parse_request(raw).to_upstream(keep_forwarded=True))
    assert [(name.decode(), value.decode()) for _, name, value in again.headers[1:]] == list(headers.items())


@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No bytes make a parser fail in another way."""
    for parse in (parse_request, parse_response):
        for raw in (data, b"GET / HTTP/1.1\r\nHost: a\r\n" + data, b"HTTP/1.1 200 OK\r\n" + data):
            try:
                parse(raw + b"\r\n\r\n")
            except BadHead:
                pass


@pytest.mark.parametrize(
    ("lines", "allowed"),
    [
        ("Connection: Upgrade\r\nUpgrade: websocket", True),
        ("Upgrade: websocket", False),
        ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x", False),
        ("Connection: upgrade\r\nUpgrade: websocket, h2c", False),
        ("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3", False),
    ],
)
def test_upgrades(lines: str, allowed: bool) -> None:
    """Only an upgrade that was properly asked for, without a body and not to HTTP/2, is passed on."""
    parsed = parse_request(head(lines))
    assert (parsed.upgrade is not None) is allowed
    assert (b"Upgrade:" in parsed.to_upstream(keep_forwarded=True)) is allowed


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
    ],
)
def test_refused_responses(raw: bytes) -> None:
    """A hostile guest can't desynchronise a client that shares its connection with other sandboxes."""
    with pytest.raises(BadHead):
        parse_response(raw)
