"""Reading the kernel's files, with what machines of every kind have in them."""

import pytest

from firebrick.doctor.machine_facts import (
    CgroupLayout,
    cgroup_facts,
    filesystems,
    kernel_version,
    listener_inodes,
    meminfo_mib,
    missing_capabilities,
)

V2 = "24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
"""
BESIDE = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "controllers", "layout", "missing"),
    [
        (V2, "cpuset cpu io memory pids\n", CgroupLayout.V2, ()),
        (V2, "cpu pids\n", CgroupLayout.V2, ("memory",)),
        (V1, "", CgroupLayout.V1, ()),
        (V1 + BESIDE, "", CgroupLayout.HYBRID, ()),
        (V1.replace("pids", "devices") + BESIDE, "pids\n", CgroupLayout.HYBRID, ()),
        ("", "", CgroupLayout.NONE, ("cpu", "memory", "pids")),
    ],
)
def test_cgroup_layouts(mountinfo: str, controllers: str, layout: CgroupLayout, missing: tuple[str, ...]) -> None:
    """Each layout is named, and a controller counts wherever it is."""
    found = cgroup_facts(mountinfo, controllers)
    assert (found.layout, found.missing) == (layout, missing)


@pytest.mark.parametrize(
    ("release", "version"), [("6.1.0-18-amd64", (6, 1)), ("5.15.167.4-microsoft-standard-WSL2", (5, 15)), ("?", (0, 0))]
)
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    """Whatever vendors append, the version is read."""
    assert kernel_version(release) == version


def test_capabilities_of_a_confined_root() -> None:
    """A container's usual root lacks what we need; the machine's root lacks nothing."""
    assert missing_capabilities("CapEff:\t000001ffffffffff\n") == ()
    assert "CAP_SYS_ADMIN" in missing_capabilities("CapEff:\t00000000a80425fb\n")


def test_memory_and_filesystems() -> None:
    """Sizes come in MiB, filesystems without their `nodev`."""
    assert meminfo_mib("MemTotal:       24690516 kB\nMemAvailable:   2048000 kB\n")["MemAvailable"] == 2000
    assert filesystems("nodev\ttmpfs\n\text4\nnodev\toverlay\n") == {"tmpfs", "ext4", "overlay"}


def test_only_listeners_hold_a_port() -> None:
    """A connection from port 3000 does not hold it; a listener does."""
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n"
        "   1: 0100007F:0BB8 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n"
    )
    assert listener_inodes(table, 3000) == {"4711"}
    assert listener_inodes(table, 3001) == frozenset()
