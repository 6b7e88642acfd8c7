"""How much this node promises: a pure function of what the machine has and what the settings allow."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

DISK_OVERCOMMIT = 16
"""Uppers are sparse and most sandboxes write a hundredth of what they may; what guards the real disk is the
reserve below, at which the node takes nothing new, and each sandbox's own limit."""

DISK_RESERVE_MIB = 2_048
DISK_RESERVE_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    cpu_count: int
    memory_mib: int
    disk_mib: int
    disk_free_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The most that may be promised. `disk_mib` is 0 while the real disk is at its reserve."""

    millicpu: int
    memory_mib: int
    disk_mib: int


def read_facts(directory: Path) -> MachineFacts:
    """Look at this machine and at the disk that holds `directory`."""
    disk = shutil.disk_usage(directory)
    return MachineFacts(
        cpu_count=len(os.sched_getaffinity(0)),
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        disk_mib=disk.total >> 20,
        disk_free_mib=disk.free >> 20,
    )


def has_room(facts: MachineFacts, wanted_mib: int) -> bool:
    """Whether so much can be written to the disk and its reserve stays free."""
    reserve_mib = max(DISK_RESERVE_MIB, int(facts.disk_mib * DISK_RESERVE_SHARE))
    return facts.disk_free_mib - wanted_mib > reserve_mib


def capacity_of(facts: MachineFacts, *, cpu_overcommit: float, memory_overcommit: float) -> Capacity:
    is_disk_left = has_room(facts, 0)
    return Capacity(
        millicpu=int(facts.cpu_count * 1000 * cpu_overcommit),
        memory_mib=int(facts.memory_mib * memory_overcommit),
        disk_mib=facts.disk_mib * DISK_OVERCOMMIT if is_disk_left else 0,
    )
