"""The multipart parser takes whatever the network brings."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick_guest.errors import HttpError
from firebrick_guest.multipart import MultipartParser, boundary_of


def parse(body: bytes, step: int, boundary: bytes = b"B") -> list[tuple[dict[str, str], bytes]]:
    parser = MultipartParser(boundary)
    parts: list[tuple[dict[str, str], bytes]] = []
    is_open = False
    for start in range(0, len(body), step):
        for event in parser.feed(body[start : start + step]):
            if isinstance(event, dict):
                parts.append((event, b""))
                is_open = True
            elif event is None:
                is_open = False
            else:
                assert is_open
                parts[-1] = (parts[-1][0], parts[-1][1] + event)
    parser.finish()
    return parts


def encode(parts: list[tuple[str, bytes]]) -> bytes:
    pieces = [
        f'--B\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts
    ]
    return b"".join(pieces) + b"--B--\r\n"


@given(
    st.lists(st.tuples(st.text("abc/é .", max_size=8), st.binary(max_size=60).filter(lambda d: b"--B" not in d))),
    st.integers(1, 70),
)
def test_parts_come_through_any_slicing(parts: list[tuple[str, bytes]], step: int) -> None:
    """Names and contents come out exactly, however the packets were cut."""
    got = parse(encode(parts), step)
    assert [(head["filename"], data) for head, data in got] == parts


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_body_is_read_or_refused(raw: bytes, step: int) -> None:
    """No bytes make the parser fail in another way than by HttpError 400."""
    for body in (raw, b"--B\r\n" + raw, encode([("a", b"x")])[:-9] + raw):
        with suppress(HttpError):
            parse(body, step)


def test_a_missing_last_boundary_is_refused() -> None:
    """A body that was cut off is not taken for a whole one."""
    with pytest.raises(HttpError):
        parse(encode([("a", b"xyz")])[:-9], 1000)


def test_too_many_parts_are_refused() -> None:
    """The number of parts is bounded."""
    with pytest.raises(HttpError):
        parse(encode([("a", b"")] * 5001), 1 << 20)


def test_a_long_part_head_is_refused() -> None:
    """A part's head is bounded."""
    with pytest.raises(HttpError):
        parse(b"--B\r\nX: " + b"a" * 20_000, 4096)


def test_quoted_names_are_unescaped() -> None:
    """A filename may hold quotes, backslashes and semicolons."""
    got = parse(encode([('a\\"b;c\\\\d', b"")]), 10)
    assert got[0][0]["filename"] == 'a"b;c\\d'


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 201])
def test_a_boundary_is_needed(content_type: str) -> None:
    """Without a usable boundary the body cannot be read."""
    with pytest.raises(HttpError):
        boundary_of(content_type)


def test_a_boundary_may_be_quoted() -> None:
    """The boundary parameter is understood with and without quotes."""
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
    assert boundary_of("multipart/form-data; charset=x; boundary=ab") == b"ab"
