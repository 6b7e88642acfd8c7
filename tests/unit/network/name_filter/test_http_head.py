"""The host of an HTTP request, from what clients send and from what is meant to be read in two ways."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from firebrick.network.name_filter.heads import HEAD_BYTES, Head, Incomplete, Malformed
from firebrick.network.name_filter.http_head import read_request_head


def head(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((first, *lines, b"", b""))


HEAD = head(b"User-Agent: curl/8.5", b"Host: Allowed.Test:80", b"Accept: */*")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (HEAD, "allowed.test"),
        (HEAD + b"the body", "allowed.test"),
        (head(b"host:\tallowed.test. "), "allowed.test"),
        (head(b"Host: a_b.xn--bcher-kva.test"), "a_b.xn--bcher-kva.test"),
        (head(b"Host: a.test", b"X-Empty:", b"X-Bytes: \xff\xfe"), "a.test"),
        (head(b"Host: a.test", first=b"POST http://A.test:80/x?y HTTP/1.1"), "a.test"),
        (head(b"Host: a.test", first=b"OPTIONS * HTTP/1.1"), "a.test"),
        (head(b"Host: a.test", first=b"GET /http://b.test/ HTTP/1.0"), "a.test"),
        (head(b"Host: 1.2.3.4"), None),
        (head(b"Host: 127.1:80"), None),
        (head(b"Host: 0x7f000001"), None),
        (head(b"Host: [::1]:80"), None),
        (head(b"Host:"), None),
        (head(first=b"GET / HTTP/1.0"), None),
    ],
)
def test_a_request_tells_its_host(data: bytes, name: str | None) -> None:
    """Without port, case and trailing dot; an address is no name."""
    assert read_request_head(data) == Head(name)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (head(b"Host: a.test", b"Host: b.test"), "several"),
        (head(b"Host: a.test", b"hOST: a.test"), "several"),
        (head(b"Host: a.test", b" Host: b.test"), "header"),
        (head(b"Host : a.test"), "header"),
        (head(b"Host: a.test", b"\tb.test"), "header"),
        (head(b"Host: a.test\0b.test"), "header"),
        (head(b"no header"), "header"),
        (head(b"Host: a.test@b.test"), "no host"),
        (head(b"Host: a.test, b.test"), "no host"),
        (head(b"Host: a.test/b.test"), "no host"),
        (head(b"Host: a b"), "no host"),
        (head(b"Host: b\xc3\xbccher.test"), "ASCII"),
        (head(b"Host: a.test:port"), "no host"),
        (head(b"Host: a.test", first=b"GET http://b.test/ HTTP/1.1"), "not on the host"),
        (head(first=b"GET http://b.test/ HTTP/1.1"), "not on the host"),
        (head(b"Host: a.test", first=b"GET https://a.test/ HTTP/1.1"), "not on the host"),
        (head(b"Host: a.test", first=b"GET http://u@a.test/ HTTP/1.1"), "not on the host"),
        (head(b"Host: a.test:443", first=b"CONNECT a.test:443 HTTP/1.1"), "proxy"),
        (head(b"Host: a.test", first=b"GET a.test HTTP/1.1"), "proxy"),
        (head(b"Host: a.test", first=b"GET  / HTTP/1.1"), "no HTTP/1"),
        (head(b"Host: a.test", first=b"GET / HTTP/2.0"), "no HTTP/1"),
        (b"GET / HTTP/1.1\nHost: a.test\n\n", "CRLF"),
        (b"GET / HTTP/1.1\r\nHost: a.test\r\r\n\r\n", "header"),
        (b"GET / HTTP/1.1\r\nHost: a\r.test\r\n\r\n", "CRLF"),
        (b"\r\nGET / HTTP/1.1\r\n", "no HTTP"),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "no HTTP/1"),
        (b"\x16\x03\x01\x02\x00", "no HTTP"),
        (b"A" * 40, "no HTTP"),
        (b"GET /" + b"a" * HEAD_BYTES, "too long"),
    ],
)
def test_what_can_be_read_in_two_ways_is_malformed(data: bytes, what: str) -> None:
    """Or in none; a server behind might read the other."""
    found = read_request_head(data)
    assert isinstance(found, Malformed)
    assert what in found.what


@given(st.integers(0, len(HEAD) - 1))
def test_every_beginning_is_incomplete(end: int) -> None:
    """However a request is cut into segments."""
    assert read_request_head(HEAD[:end]) == Incomplete()


@given(st.binary(max_size=400), st.integers(0, len(HEAD)))
@example(b"\r\n\r\n", len(HEAD) - 2)
@example(b"\nHost: b.test", 14)
def test_no_bytes_break_the_reader(noise: bytes, at: int) -> None:
    """And none smuggle a second host in: what comes out as a name is the only Host that stands there."""
    for data in (noise, HEAD[:at] + noise, HEAD[:at] + noise + HEAD[at:]):
        found = read_request_head(data)
        if isinstance(found, Head) and found.name is not None:
            top = data[: data.index(b"\r\n\r\n")].lower()
            assert top.replace(b"\n", b"\r").count(b"\rhost:") == 1
            assert found.name.encode() in top
