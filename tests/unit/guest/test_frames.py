"""Connect's envelopes and JSON fields."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick_guest.connect import FrameDecoder, frame
from firebrick_guest.errors import ConnectError
from firebrick_guest.json_text import binary, load_json, number, text
from firebrick_guest.output import data_frames


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 20))
def test_messages_come_through_any_slicing(messages: list[bytes], step: int) -> None:
    """Enveloped messages come out whole and in order, however the stream was cut."""
    stream = b"".join(frame(message) for message in messages)
    decoder, got = FrameDecoder(), []
    for start in range(0, len(stream), step):
        decoder.feed(stream[start : start + step])
        while (message := decoder.next()) is not None:
            got.append(message)
    decoder.finish()
    assert got == messages


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\x01\x00\x00\x00\x00", "internal"),
        (b"\x02\x00\x00\x00\x00", "invalid_argument"),
        (b"\x80\x00\x00\x00\x00", "invalid_argument"),
        (b"\x00\xff\xff\xff\xff", "resource_exhausted"),
    ],
)
def test_a_bad_envelope_is_refused(raw: bytes, code: str) -> None:
    """Compression nobody agreed on, unknown flags and lengths beyond the limit end the stream with their code."""
    decoder = FrameDecoder()
    decoder.feed(raw)
    with pytest.raises(ConnectError) as caught:
        decoder.next()
    assert caught.value.code == code


def test_a_stream_that_ends_inside_a_message_is_refused() -> None:
    """Half an envelope is not silently dropped."""
    decoder = FrameDecoder()
    decoder.feed(frame(b"abc")[:-1])
    assert decoder.next() is None
    with pytest.raises(ConnectError):
        decoder.finish()


@given(st.binary(max_size=300))
def test_any_json_is_read_or_refused(raw: bytes) -> None:
    """No document makes the reader fail in another way than by ConnectError."""
    with suppress(ConnectError):
        assert isinstance(load_json(raw), dict)


def test_deeply_nested_json_is_refused() -> None:
    """A document that would overflow the reader's stack is an invalid argument."""
    with pytest.raises(ConnectError):
        load_json(b'{"a":' + b"[" * 100_000)


@pytest.mark.parametrize("value", [1, ["a"], "a\0b", "\ud800"])
def test_what_the_kernel_cannot_take_is_no_text(value: object) -> None:
    """Numbers, NUL and lone surrogates are refused where a path or argument is wanted."""
    with pytest.raises(ConnectError):
        text({"path": value}, "path")


def test_numbers_may_be_strings() -> None:
    """64-bit integers come as strings in protobuf's JSON; out of range is refused."""
    assert number({"pid": "7"}, "pid", 0, low=0, high=10) == 7
    for bad in (11, "x", True, 1.5, float("nan"), "9" * 30):
        with pytest.raises(ConnectError):
            number({"pid": bad}, "pid", 0, low=0, high=10)


def test_base64_in_both_alphabets() -> None:
    """Standard and URL-safe base64 are understood, anything else refused."""
    assert binary({"x": "_-8="}, "x") == binary({"x": "/+8"}, "x") == b"\xff\xef"
    with pytest.raises(ConnectError):
        binary({"x": "a"}, "x")


def test_neighbours_are_joined() -> None:
    """Pieces of one kind that follow one another leave in one message, and kinds keep their order."""
    frames = data_frames([("stdout", b"a"), ("stdout", b"b"), ("stderr", b"c")])
    decoder = FrameDecoder()
    decoder.feed(frames)
    assert decoder.next() == b'{"event":{"data":{"stdout":"YWI="}}}'
    assert decoder.next() == b'{"event":{"data":{"stderr":"Yw=="}}}'
    assert decoder.next() is None
    numbered = data_frames([("stdout", b"ab"), ("stderr", b"c")], 7)
    assert b'"stdout":"YWI=","seq":"7"' in numbered
    assert b'"stderr":"Yw==","seq":"9"' in numbered
