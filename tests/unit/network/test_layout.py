"""Names and addresses of slots."""

from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.model.errors import Invalid
from firebrick.network.layout import LARGEST_INDEX, Layout, instance_name
from firebrick.network.pool import NativeSlotPool, default_size
from firebrick.network.rules import CLOSED, fingerprint, host_table, slot_table

WIDE = IPv4Network("10.111.0.0/16")
INSTANCES = st.from_regex(r"[a-z0-9]{4}", fullmatch=True)


def layout(instance: str = "ab12", prefix: IPv4Network = WIDE) -> Layout:
    return Layout(instance=instance, prefix=prefix)


def test_an_instance_is_named_after_its_data_directory() -> None:
    """The same directory always gives the same four letters, another directory others."""
    name = instance_name(Path("/var/lib/firebrick"))
    assert name == instance_name(Path("/var/lib/firebrick"))
    assert len(name) == 4
    assert name != instance_name(Path("/var/lib/firebrick2"))


@given(instance=INSTANCES, index=st.integers(0, LARGEST_INDEX))
def test_every_name_is_found_again_and_fits_the_kernel(instance: str, index: int) -> None:
    """A name leads back to its index, and a link's name has at most 15 letters."""
    one = layout(instance)
    assert one.index_of_netns(one.slot_netns(index)) == one.index_of_netns(one.guest_netns(index)) == index
    assert one.index_of_link(one.host_link(index)) == index
    assert len(one.host_link(index)) <= 15


@pytest.mark.parametrize(
    "name",
    [
        "fb-ab12-s07",
        "fb-ab12-s",
        "fb-ab12-s7-old",
        "fb-ab123-s7",
        "fb-ab12-t7",
        "xfb-ab12-s7",
        "fb-ab12-s7\n",
        "fb-ab12-s٣",
    ],
)
def test_a_similar_name_is_somebody_elses(name: str) -> None:
    """Only the exact form counts as ours."""
    assert layout().index_of_netns(name) is None


@given(instance=INSTANCES, prefix=st.sampled_from([WIDE, IPv4Network("172.30.8.0/24"), IPv4Network("10.0.0.0/30")]))
def test_no_two_slots_share_an_address(instance: str, prefix: IPv4Network) -> None:
    """All addresses of all slots that the prefix holds differ, lie in it, and pair up to /31 networks."""
    one = layout(instance, prefix)
    count = min(one.capacity_count, 300)
    hosts = [one.host_address(index) for index in range(count)]
    slots = [one.address(index) for index in range(count)]
    assert len({*hosts, *slots}) == 2 * count
    assert all(address in prefix for address in (*hosts, *slots))
    assert all(int(host) % 2 == 0 and slot == host + 1 for host, slot in zip(hosts, slots, strict=True))


@pytest.mark.parametrize(("size", "prefix"), [(3, "10.0.0.0/30"), (-1, "10.111.0.0/16"), (40_000, "10.111.0.0/16")])
def test_a_pool_that_the_prefix_cannot_hold_is_refused(size: int, prefix: str) -> None:
    """The message names both settings, one of which has to change."""
    with pytest.raises(Invalid, match=r"slot_count.*network_prefix"):
        NativeSlotPool(instance="ab12", prefix=IPv4Network(prefix), size=size)


@pytest.mark.parametrize(("memory_gib", "size"), [(1, 8), (4, 16), (23, 64), (512, 64)])
def test_the_default_size_follows_the_memory(memory_gib: int, size: int) -> None:
    """Four slots for each GiB, between 8 and 64."""
    assert default_size(memory_gib << 30) == size


def test_every_metadata_address_is_closed() -> None:
    """The metadata addresses of the large clouds lie in closed ranges, also those that look public."""
    closed = [IPv4Network(text) for text in CLOSED]
    for address in ("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "169.254.170.2"):
        assert any(IPv4Network(address).subnet_of(network) for network in closed)


def test_the_prefix_is_closed_even_if_it_is_public() -> None:
    """Guests cannot reach other slots, whatever network the setting names."""
    public = layout(prefix=IPv4Network("203.0.113.0/24"))
    assert "203.0.113.0/24" in slot_table(public, 0)
    assert "203.0.113.0/24" in host_table(public, range(2), ())


def test_a_slot_of_another_layout_is_not_taken_for_ours() -> None:
    """The fingerprint changes with the index, the instance and the prefix."""
    other = layout(prefix=IPv4Network("10.112.0.0/16"))
    prints = {fingerprint(layout(), 0), fingerprint(layout(), 1), fingerprint(layout("cd34"), 0), fingerprint(other, 0)}
    assert len(prints) == 4
