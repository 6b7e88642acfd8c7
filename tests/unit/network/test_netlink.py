"""The netlink encoding, against what the kernel's headers say."""

from ipaddress import IPv4Interface

from hypothesis import given
from hypothesis import strategies as st

from firebrick.linux.netlink import VethEnd, address_add, attribute, attributes, veth_add


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=300), max_size=8))
def test_attributes_come_back_as_they_were_written(values: dict[int, bytes]) -> None:
    """Each attribute is padded to four bytes, and decoding gives back kind and payload."""
    data = b"".join(attribute(kind, payload) for kind, payload in values.items())
    assert len(data) % 4 == 0
    assert attributes(data) == values


@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoder_fail_or_hang(data: bytes) -> None:
    """Whatever arrives is decoded as far as it makes sense."""
    attributes(data)


def test_an_address_is_encoded_as_the_kernel_reads_it() -> None:
    """Family, prefix length and interface, then IFA_LOCAL and IFA_ADDRESS."""
    body = address_add(7, IPv4Interface("10.111.0.1/31")).body
    assert body[:8] == bytes([2, 31, 0, 0, 7, 0, 0, 0])
    assert attributes(body[8:]) == {1: bytes([10, 111, 0, 1]), 2: bytes([10, 111, 0, 1])}


def test_both_ends_of_a_pair_stand_in_one_request() -> None:
    """The far end is an attribute of an attribute of the near one: name, MAC and namespace are there."""
    far = VethEnd(name="eth0", index=2, mac="02:00:00:00:00:01", netns=9)
    outer = attributes(veth_add(VethEnd(name="inner", index=3), far).body[16:])
    peer = attributes(attributes(attributes(outer[18])[2])[1][16:])
    assert outer[3] == b"inner\0"
    assert peer == {3: b"eth0\0", 1: bytes([2, 0, 0, 0, 0, 1]), 28: bytes([9, 0, 0, 0])}
