"""Usage, capacity, ids and the files every guest sees."""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from firebrick.network.base import Slot
from firebrick.node.capacity import DISK_OVERCOMMIT, MachineFacts, capacity_of, has_room
from firebrick.node.guest_files import guest_files
from firebrick.node.machine import ID_COUNT, id_shift_of
from firebrick.node.usage import CpuMeter, RestWatch

FACTS = MachineFacts(cpu_count=2, memory_mib=8000, disk_mib=100_000, disk_free_mib=50_000)


def test_cpu_is_in_percent_of_one_core() -> None:
    """Two cores busy are 200."""
    meter = CpuMeter(base_s=100.0)
    assert meter.read(now_s=110.0, cpu_ns=20_000_000_000) == 200.0
    assert meter.read(now_s=120.0, cpu_ns=20_000_000_000) == 0.0


def test_two_readers_in_quick_succession_see_the_same() -> None:
    """A span too short to measure repeats the last answer and does not move the base."""
    meter = CpuMeter(base_s=0.0)
    assert meter.read(now_s=10.0, cpu_ns=5_000_000_000) == 50.0
    assert meter.read(now_s=10.1, cpu_ns=9_000_000_000) == 50.0
    assert meter.read(now_s=20.0, cpu_ns=10_000_000_000) == 50.0


def test_an_adopted_counter_starts_from_its_first_reading() -> None:
    """What it used before the adoption is not charged to the moment after."""
    meter = CpuMeter(base_s=0.0, base_ns=None)
    assert meter.read(now_s=50.0, cpu_ns=10**15) == 0.0
    assert meter.read(now_s=60.0, cpu_ns=10**15 + 10**10) == 100.0


def test_a_counter_that_went_back_is_nothing_used() -> None:
    """Never a negative percentage."""
    meter = CpuMeter(base_s=0.0, base_ns=10**12)
    assert meter.read(now_s=10.0, cpu_ns=5) == 0.0


def test_capacity_is_what_there_is_times_what_is_allowed() -> None:
    """CPU and memory by the settings, disk by our constant."""
    capacity = capacity_of(FACTS, cpu_overcommit=8.0, memory_overcommit=4.0)
    assert (capacity.millicpu, capacity.memory_mib) == (16_000, 32_000)
    assert capacity.disk_mib == 100_000 * DISK_OVERCOMMIT


def test_a_nearly_full_disk_promises_nothing() -> None:
    """Uppers are sparse: when the real disk is at its reserve, no new sandbox may count on it."""
    full = MachineFacts(cpu_count=2, memory_mib=8000, disk_mib=100_000, disk_free_mib=5_000)
    assert capacity_of(full, cpu_overcommit=8.0, memory_overcommit=4.0).disk_mib == 0


def test_a_guest_can_resolve_its_own_name() -> None:
    """Or `sudo` would complain at each use."""
    files = guest_files("sandbox", ("192.0.2.1", "192.0.2.2"))
    assert any(line.split()[1:] == ["sandbox"] for line in files["/etc/hosts"].splitlines())
    assert files["/etc/resolv.conf"] == "nameserver 192.0.2.1\nnameserver 192.0.2.2\n"


def test_no_two_slots_share_ids() -> None:
    """Every slot of a whole /16 has a range of its own, and all of them are ids."""
    addresses = [IPv4Address(int(IPv4Network("10.111.0.0/16").network_address) + 2 * i + 1) for i in range(32_768)]
    shifts = {id_shift_of(Slot(index=0, address=address, netns=Path("/"))) for address in addresses}
    assert len(shifts) == len(addresses)
    assert all(shift % ID_COUNT == 0 for shift in shifts)
    assert max(shifts) + ID_COUNT < 2**32 - 1


def test_what_is_saved_leaves_the_reserve() -> None:
    """Exactly up to the reserve there is room, and not for a MiB more."""
    reserve_mib = max(2_048, FACTS.disk_mib // 20)
    free_mib = FACTS.disk_free_mib - reserve_mib
    assert [has_room(FACTS, wanted_mib) for wanted_mib in (0, free_mib - 1, free_mib)] == [True, True, False]


def test_coming_to_rest_is_told_once() -> None:
    """Not of one that has just been seen first, nor again before it has worked."""
    watch, second_ns = RestWatch(), 1_000_000_000
    readings = [0, 5, 5.1, 5.2, 65, 65.1, 65.1]
    told = [
        watch.comes_to_rest(now_s=60.0 * number, cpu_ns=int(used_s * second_ns))
        for number, used_s in enumerate(readings)
    ]
    assert told == [False, False, True, False, False, True, False]
