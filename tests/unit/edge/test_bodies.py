"""Taking the framing off bodies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.edge.bodies import BadBody, ChunkedBody, LengthBody, chunk


def feed_in_pieces(body: ChunkedBody | LengthBody, data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    payload, at = b"", 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        if body.is_complete:
            break
        fresh, surplus = body.feed(data[at:cut])
        payload, at = payload + fresh, cut
        if body.is_complete:
            return payload, surplus + data[at:]
    return payload, data[at:]


@given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(0, 10_000)), st.binary(max_size=9))
def test_chunks_survive_any_cutting(pieces: list[bytes], cuts: list[int], after: bytes) -> None:
    """However the network cuts a chunked body, its payload and what follows it are told apart."""
    framed = b"".join(b"".join(chunk(piece)) for piece in pieces) + b"0;ext=1\r\nTrailer: x\r\n\r\n"
    body = ChunkedBody()
    assert feed_in_pieces(body, framed + after, cuts) == (b"".join(pieces), after)
    assert body.is_complete


@given(st.binary(max_size=60), st.integers(0, 60), st.lists(st.integers(0, 100)))
def test_length_survives_any_cutting(data: bytes, length: int, cuts: list[int]) -> None:
    """A body with a length takes exactly its bytes."""
    payload, surplus = feed_in_pieces(LengthBody(length), data, cuts)
    assert (payload, surplus) == (data[:length], data[length:])


@pytest.mark.parametrize(
    "framed",
    [
        b"5\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"\r\n",
        b"5\r\nhello6\r\n",
        b"5\r\nhello\n",
        b"5;\x00\r\nhello\r\n",
        b"5;a\nb\r\nhello\r\n",
        b"-1\r\n",
        b"g\r\n",
        b"fffffffffffffffff\r\n",
        b"1" * 2000,
        b"5;" + b"x" * 2000,
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\nA: " + b"x" * 20_000,
        b"0\r\n" + b"A: x\r\n" * 5000,
        b"0\r\nA : x\r\n\r\n",
        b"5\rhello",
        b"0\r\n folded: x\r\n\r\n",
    ],
)
def test_malformed_chunks_are_refused(framed: bytes) -> None:
    """Framing that two parsers could read in two ways is refused, however it is cut."""
    for step in (1, 3, len(framed)):
        body = ChunkedBody()
        with pytest.raises(BadBody):
            for at in range(0, len(framed), step):
                body.feed(framed[at : at + step])
            # A bare CR is legal so far only if LF may still follow.
            body.feed(b"xxxxxx")


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read(data: bytes) -> None:
    """No bytes make the reader fail in another way."""
    body = ChunkedBody()
    try:
        body.feed(data)
    except BadBody:
        pass
