"""What a monitor's API is asked, and what of its answers is taken."""

import json

import pytest

from firebrick.runtimes.firecracker.http_exchange import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    Answer,
    encode_request,
    parse_answer,
)

FULL = b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nContent-Length: 2\r\n\r\n{}"


def test_a_request_tells_its_length() -> None:
    head, _, body = encode_request("PUT", "/vm", {"state": "Paused"}).partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /vm HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"state": "Paused"}
    assert b"Content-Length" not in encode_request("GET", "/", None)


@pytest.mark.parametrize("length", range(len(FULL)))
def test_a_part_is_waited_for(length: int) -> None:
    assert parse_answer(FULL[:length]) is None


def test_a_whole_answer_is_taken() -> None:
    assert parse_answer(FULL) == Answer(status=200, body=b"{}")
    assert parse_answer(FULL + b"more") == Answer(status=200, body=b"{}")
    assert parse_answer(b"HTTP/1.1 204 \r\n\r\n") == Answer(status=204, body=b"")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"SSH-2.0\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 20\r\n\r\n", "not HTTP"),
        (b"X" * (MAX_HEAD_BYTES + 1), "head is longer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), "longer"),
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_answer(data)
