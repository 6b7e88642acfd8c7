"""The parsers of HTTP take whatever the network brings."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick_guest.errors import HttpError
from firebrick_guest.http_head import ChunkDecoder, decode_component, parse_head


def decode(stream: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """Feed `stream` in pieces; the payload, and what is left behind the body."""
    decoder, buffer, payload = ChunkDecoder(), bytearray(), b""
    edges = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    for start, end in pairwise(edges):
        buffer += stream[start:end]
        while piece := decoder.feed(buffer, 7):
            payload += piece
    assert decoder.is_done
    return payload, bytes(buffer)


def test_a_head_is_read() -> None:
    """Method, path, query and headers of a usual request come out as they were sent."""
    head = parse_head(b"POST /files?path=a%20b&x=+ HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a:2\r\nContent-Length: 5")
    assert (head.method, head.path, head.length, head.keep_alive) == ("POST", "/files", 5, True)
    assert head.headers["x-a"] == "1, 2"
    assert (head.argument("path"), head.argument("x"), head.argument("y")) == ("a b", " ", None)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\nA : b", 400),
        (b"GET / HTTP/1.1\r\n folded", 400),
        (b"GET / HTTP/1.1\r\nA: b\nC: d", 400),
        (b"GET / HTTP/1.1\r\nA: \x00", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET http://h/ HTTP/1.1", 400),
        (b"G(T / HTTP/1.1", 400),
        (b"", 400),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/1.1\r\nContent-Length: -1", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: xchunked", 501),
        (b"GET / HTTP/1.1" + b"\r\nA: b" * 201, 431),
    ],
)
def test_a_doubtful_head_is_refused(raw: bytes, status: int) -> None:
    """What two parsers could read differently ends the connection."""
    with pytest.raises(HttpError) as caught:
        parse_head(raw)
    assert (caught.value.status, caught.value.close) == (status, True)


@given(st.binary(max_size=300))
def test_any_head_is_read_or_refused(raw: bytes) -> None:
    """No bytes whatever make the head's parser fail in another way than by HttpError."""
    for candidate in (raw, b"GET /" + raw + b" HTTP/1.1", b"GET / HTTP/1.1\r\n" + raw):
        try:
            head = parse_head(candidate)
        except HttpError:
            continue
        assert head.path.startswith("/")


@given(st.lists(st.binary(min_size=1, max_size=20)), st.lists(st.integers(0, 400)), st.binary(max_size=10))
def test_chunks_come_through_any_slicing(pieces: list[bytes], cuts: list[int], behind: bytes) -> None:
    """A chunked body yields its payload, and leaves alone what follows it, however the packets were cut."""
    stream = b"".join(b"%x;e=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nT: v\r\n\r\n"
    assert decode(stream + behind, cuts) == (b"".join(pieces), behind)


@given(st.binary(max_size=200))
def test_any_chunks_are_read_or_refused(raw: bytes) -> None:
    """The chunk decoder consumes, waits or refuses, and never loops."""
    decoder, buffer = ChunkDecoder(), bytearray(raw)
    with suppress(HttpError):
        while decoder.feed(buffer, 16):
            pass


@given(st.text(max_size=50))
def test_percent_encoding_round_trips(text: str) -> None:
    """Any text survives being percent-encoded."""
    encoded = "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))
    assert decode_component(encoded).encode("utf-8", "surrogateescape") == text.encode("utf-8", "surrogatepass")


def test_a_broken_escape_is_refused() -> None:
    """`%zz` is neither kept nor guessed at."""
    with pytest.raises(HttpError):
        decode_component("a%zz")
