"""What the kernel's text files say, as values. Pure: text in, facts out, for machines of every kind."""

import re
from dataclasses import dataclass
from enum import StrEnum

from firebrick.linux.mount import parse_mountinfo

NEEDED_CONTROLLERS = ("cpu", "memory", "pids")
# capabilities(7): bit numbers of what the node agent uses.
NEEDED_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_MKNOD": 27}


class CgroupLayout(StrEnum):
    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupFacts:
    """Where the controllers are. Hybrid: v1 hierarchies with a v2 mount beside them."""

    layout: CgroupLayout
    v1_controllers: frozenset[str]
    v2_controllers: frozenset[str]

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in NEEDED_CONTROLLERS if name not in self.v1_controllers | self.v2_controllers)


def cgroup_facts(mountinfo: str, v2_controllers: str) -> CgroupFacts:
    """From mountinfo and the `cgroup.controllers` of the v2 mount ("" when there is none)."""
    entries = parse_mountinfo(mountinfo)
    v1: set[str] = set()
    for entry in entries:
        if entry.fstype == "cgroup":
            v1 |= set(entry.options.split(","))
    v1 &= {"cpu", "cpuacct", "cpuset", "memory", "pids", "freezer", "devices", "blkio", "io"}
    has_v2 = any(entry.fstype == "cgroup2" for entry in entries)
    if v1:
        layout = CgroupLayout.HYBRID if has_v2 else CgroupLayout.V1
    else:
        layout = CgroupLayout.V2 if has_v2 else CgroupLayout.NONE
    return CgroupFacts(layout=layout, v1_controllers=frozenset(v1), v2_controllers=frozenset(v2_controllers.split()))


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor of `uname -r`; (0, 0) when it cannot be read."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def missing_capabilities(status: str) -> tuple[str, ...]:
    """From /proc/self/status: what we would need and do not have."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    mask = int(match[1], 16) if match else 0
    return tuple(name for name, bit in NEEDED_CAPABILITIES.items() if not mask >> bit & 1)


def meminfo_mib(text: str) -> dict[str, int]:
    """From /proc/meminfo, in MiB."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(value) // 1024 for name, value in found}


def filesystems(text: str) -> frozenset[str]:
    """From /proc/filesystems: those the kernel has now; modules may bring more."""
    return frozenset(line.split()[-1] for line in text.splitlines() if line.strip())


def listener_inodes(tcp: str, port: int) -> frozenset[str]:
    """From /proc/net/tcp or tcp6: socket inodes that listen on `port`."""
    found = set()
    for line in tcp.splitlines()[1:]:
        words = line.split()
        # sl local_address rem_address st … inode; 0A is LISTEN
        if len(words) > 9 and words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
            found.add(words[9])
    return frozenset(found)
