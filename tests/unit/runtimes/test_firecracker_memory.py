"""Facts of a save and of a host, and why they do not fit."""

import hashlib
import json
from dataclasses import replace
from ipaddress import IPv4Interface

import pytest

from firebrick.runtimes.firecracker.memory import (
    Host,
    Processor,
    SavedFile,
    SaveFacts,
    Started,
    damage,
    facts_from_json,
    facts_to_json,
    misfit,
    read_processor,
    refusal,
    started_from_json,
    started_to_json,
    state_version,
    tracks_from_start,
)
from firebrick.runtimes.firecracker.plan import Network, Rates
from firebrick.runtimes.firecracker.saves import save_timeout_s

HOST = Host(
    processor=Processor(vendor="AuthenticAMD", family=23, model=49, features=frozenset({"sse2", "avx2", "aes"})),
    kernel="6.1.0-56-cloud-amd64",
    snapshot_version="6.0.0",
)
STARTED = Started(
    user_id=70_000,
    cpu_count=2,
    memory_mib=256,
    guest_kernel_sha256="a" * 64,
    initramfs_sha256="b" * 64,
    network=Network(mac="02:fb:a9:fe:00:15", address=IPv4Interface("169.254.0.21/30"), gateway="169.254.0.22"),
    rates=Rates(disk_bytes_per_s=5),
    is_restored=False,
)
STATE = b"state"
SAVE = SaveFacts(
    firecracker="1.12.1",
    host=HOST,
    started=STARTED,
    files={
        "memory": SavedFile(size_bytes=256 << 20),
        "state": SavedFile(size_bytes=5, sha256=hashlib.sha256(STATE).hexdigest()),
        "agent": SavedFile(size_bytes=4096),
    },
)
SIZES = {"memory": 256 << 20, "state": 5, "agent": 4096}


def elsewhere(**changes: object) -> Host:
    return replace(HOST, processor=replace(HOST.processor, **changes))  # type: ignore[arg-type]


def test_where_it_was_saved_it_goes_on() -> None:
    assert refusal(SAVE, HOST) == ""


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (elsewhere(vendor="GenuineIntel"), ("AuthenticAMD", "GenuineIntel")),
        (elsewhere(features=frozenset({"sse2", "fma"})), ("has not: aes, avx2.",)),
        (replace(HOST, snapshot_version="7.0.0"), ("Firecracker 1.12.1", "6.0.0", "7.0.0")),
        (replace(HOST, snapshot_version=""), ("format 6.0.0",)),
        (replace(HOST, kernel="5.15.0-1-generic"), ("newer", "6.1.0-56-cloud-amd64", "5.15.0-1-generic")),
    ],
)
def test_another_host_is_refused_with_the_reason(host: Host, words: tuple[str, ...]) -> None:
    """Another vendor, instructions by their names, a format that is not read, an older kernel."""
    why = refusal(SAVE, host)
    assert all(word in why for word in words), why
    assert why.endswith(".")


@pytest.mark.parametrize(
    "host",
    [
        elsewhere(features=HOST.processor.features | {"avx512f"}, family=25, model=1),
        replace(HOST, snapshot_version="6.2.0"),
        replace(HOST, kernel="6.12.118+deb13-cloud-amd64"),
    ],
)
def test_a_host_that_has_more_takes_it(host: Host) -> None:
    """More instructions, a newer minor format, a newer kernel."""
    assert refusal(SAVE, host) == ""


def test_a_guest_cannot_change_its_size() -> None:
    assert misfit(SAVE, cpu_count=2, memory_mib=256) == ""
    assert "2 CPUs and 256 MiB, not 1 and 512" in misfit(SAVE, cpu_count=1, memory_mib=512)


@pytest.mark.parametrize(
    ("sizes", "state", "named"),
    [
        (SIZES, STATE, ""),
        (SIZES | {"memory": 4096}, STATE, "'memory'"),
        ({"memory": 256 << 20, "state": 5}, STATE, "'agent'"),
        (SIZES, b"stat!", "'state'"),
    ],
)
def test_damage_is_seen(sizes: dict[str, int], state: bytes, named: str) -> None:
    found = damage(SAVE, sizes, state)
    assert named in found
    assert bool(found) == bool(named)


def test_facts_and_starts_are_read_as_written() -> None:
    assert facts_from_json(facts_to_json(SAVE)) == SAVE
    for started in (STARTED, replace(STARTED, network=None, is_restored=True, tracks=True, is_huge=True)):
        assert started_from_json(started_to_json(started)) == started


def test_a_machine_of_an_earlier_version_tracks_nothing() -> None:
    """So a save of it writes everything."""
    found = json.loads(started_to_json(replace(STARTED, tracks=True)))
    del found["tracks"]
    assert not started_from_json(json.dumps(found)).tracks


@pytest.mark.parametrize(
    ("enabled", "tracks"),
    [
        ("[always] madvise never\n", False),
        ("always [madvise] never\n", True),
        ("always madvise [never]\n", True),
        ("", True),
    ],
)
def test_large_pages_are_not_lost_to_tracking(enabled: str, tracks: bool) -> None:
    """A host that gives them unasked goes on to; its fresh machines write all of their memory at the first save."""
    assert tracks_from_start(enabled) is tracks


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layout": 2}', '{"layout": 1, "processor": 7}', "\0", "null"])
def test_facts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        facts_from_json(text)


def test_facts_that_name_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        facts_from_json(facts_to_json(SAVE).replace('"agent"', '"../agent"'))


def test_what_guests_see_of_a_processor() -> None:
    """The first one's; what is the host's alone, or a bug's name, is left out."""
    text = (
        "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\nmodel name\t: X: y\n"
        "flags\t\t: sse2 vmx monitor avx512f\n\nprocessor\t: 1\nvendor_id\t: Other\n"
    )
    assert read_processor(text) == Processor(
        vendor="GenuineIntel", family=6, model=106, features=frozenset({"sse2", "avx512f"})
    )
    assert read_processor("").vendor == ""


def test_a_state_says_its_version() -> None:
    head = bytes.fromhex("0000648684191007") + (5).to_bytes(8, "little") + b"6.0.0"
    assert state_version(head + b"rest") == "6.0.0"
    for other in (b"", b"\0" * 40, head[:8] + b"\xff" * 16, head[:16] + b"x.y.z", head[:16]):
        with pytest.raises(ValueError, match="state"):
            state_version(other)


def test_a_large_memory_has_more_time() -> None:
    assert save_timeout_s(1024, 30.0) == 60.0
    assert save_timeout_s(8192, 300.0) == 2700.0
