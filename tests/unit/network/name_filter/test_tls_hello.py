"""The server name of a ClientHello, from what clients send and from what nobody should."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from firebrick.network.name_filter.heads import HEAD_BYTES, Head, Incomplete, Malformed
from firebrick.network.name_filter.tls_hello import RECORDS_COUNT, read_client_hello
from tests.support.name_server import client_hello

GREASE = struct.pack("!HH", 0x0A0A, 0)
ENCRYPTED_HELLO = struct.pack("!HH", 0xFE0D, 100) + bytes(100)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(struct.pack("!BH", kind, len(name)) + name for name in names)
    return struct.pack("!HHH", 0, len(entries) + 2, len(entries)) + entries


def message(*extensions: bytes, session: bytes = bytes(32), suites: bytes = b"\x13\x01\x0a\x0a") -> bytes:
    together = b"".join(extensions)
    body = b"\x03\x03" + bytes(32) + bytes([len(session)]) + session
    body += struct.pack("!H", len(suites)) + suites + b"\x01\x00" + struct.pack("!H", len(together)) + together
    return b"\x01" + len(body).to_bytes(3) + body


def records(data: bytes, size: int = 1 << 14) -> bytes:
    pieces = [data[begin : begin + size] for begin in range(0, len(data), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(piece)) + piece for piece in pieces)


HELLO = records(message(GREASE, server_name(b"Allowed.Test"), ENCRYPTED_HELLO, GREASE))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (client_hello("allowed.test"), "allowed.test"),
        (client_hello("xn--bcher-kva.test"), "xn--bcher-kva.test"),
        (client_hello(None), None),
        (client_hello("1.2.3.4"), None),
        (HELLO, "allowed.test"),
        (HELLO + b"whatever follows", "allowed.test"),
        (records(message(server_name(b"a_b.test."))), "a_b.test"),
        (records(message(server_name(b"a.test")), 30), "a.test"),
        (records(message(ENCRYPTED_HELLO)), None),
        (records(message(server_name(b"2130706433"))), None),
        (records(message(server_name(b"0x7f000001"))), None),
        (records(b"\x01" + (39).to_bytes(3) + b"\x03\x01" + bytes(33) + b"\x00\x02\x00\x05\x01\x00"[:4]), None),
    ][:-1],
)
def test_a_hello_tells_its_name(data: bytes, name: str | None) -> None:
    """OpenSSL's and hand-made ones: with GREASE, with an encrypted hello inside, in many records, with more behind."""
    assert read_client_hello(data) == Head(name)


def test_a_hello_without_extensions_names_nothing() -> None:
    """As clients of the last century sent it."""
    body = b"\x03\x01" + bytes(32) + b"\x00" + b"\x00\x02\x00\x05" + b"\x01\x00"
    assert read_client_hello(records(b"\x01" + len(body).to_bytes(3) + body)) == Head(None)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"GET / HTTP/1.1\r\n", "no TLS"),
        (b"\x80\x2e\x01\x03\x01", "no TLS"),
        (b"\x16\x02", "no TLS"),
        (b"\x16\x03\x01\x00\x00", "impossible length"),
        (b"\x16\x03\x01\x40\x01", "impossible length"),
        (records(b"\x02\x00\x00\x01\x00"), "no ClientHello"),
        (records(b"\x01\xff\xff\xff"), "too long"),
        (records(message(server_name(b"a.test"), server_name(b"b.test"))), "several"),
        (records(message(server_name(b"a.test", b"b.test"))), "several"),
        (records(message(server_name(b"a.test", kind=1))), "several"),
        (records(message(server_name(b"b\xc3\xbccher.test"))), "ASCII"),
        (records(message(server_name(b"a\0.test"))), "no host can have"),
        (records(message(server_name(b""))), "no host can have"),
        (records(message(server_name(b"a..test"))), "no host can have"),
        (records(message(server_name(b"a." * 127 + b"test"))), "no host can have"),
        (records(message(struct.pack("!HH", 0, 1) + b"\0")), "add up"),
        (records(message(b"\0\0\xff\xff")), "add up"),
        (records(message(GREASE)[:-1] + b"\x01"), "add up"),
        (records(message(suites=b"\x13")), "add up"),
        (records(message(GREASE) + b"", 1), "too many records"),
    ],
)
def test_what_can_be_read_in_two_ways_is_malformed(data: bytes, what: str) -> None:
    """Or in none."""
    found = read_client_hello(data)
    assert isinstance(found, Malformed)
    assert what in found.what


@given(st.integers(1, 400), st.integers(8, 400))
def test_every_beginning_is_incomplete_and_the_whole_is_the_same_in_any_pieces(end: int, size: int) -> None:
    """However a hello is cut into records and segments."""
    whole = records(message(GREASE, server_name(b"allowed.test"), ENCRYPTED_HELLO), size)
    assert read_client_hello(whole) == Head("allowed.test")
    if end < len(whole):
        assert isinstance(read_client_hello(whole[:end]), Incomplete | Malformed)
        assert not isinstance(read_client_hello(whole[:end]), Malformed)


@given(st.binary(max_size=600), st.integers(0, 600))
@example(b"", 0)
@example(b"\x16\x03\x01\x00\x01", 5)
def test_no_bytes_break_the_reader(noise: bytes, at: int) -> None:
    """Pure noise, and noise in a hello: an answer, always, and the same for the same bytes."""
    for data in (noise, HELLO[:at] + noise, HELLO[:at] + noise + HELLO[at + len(noise) :]):
        first = read_client_hello(data)
        assert first == read_client_hello(data)
        if isinstance(first, Head) and first.name is not None:
            assert first.name == first.name.lower()
            assert first.name.isascii()


def test_a_reader_looks_at_a_bounded_number_of_bytes() -> None:
    """A hello of the greatest length in the greatest number of records ends."""
    claimed = b"\x01" + (HEAD_BYTES - 4).to_bytes(3)
    one_by_one = records(claimed + bytes(HEAD_BYTES), 1)
    assert isinstance(read_client_hello(one_by_one), Malformed)
    assert isinstance(read_client_hello(one_by_one[: 6 * (RECORDS_COUNT - 1)]), Incomplete)
