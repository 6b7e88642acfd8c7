"""Reading the kernel's files about processor, modules and mounts, as machines of many kinds have them."""

from pathlib import Path

import pytest

from firebrick.doctor.host_facts import Modules, chosen_word, cpu_of, modules_of, place_of, swaps_of
from firebrick.linux.mount import parse_mountinfo

AMD = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 23
model\t\t: 49
model name\t: AMD EPYC 7702 64-Core Processor
stepping\t: 0
flags\t\t: fpu tsc constant_tsc nonstop_tsc svm tsc_scale
power management:

processor\t: 1
vendor_id\t: another
"""
INTEL = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 106
model name\t: Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz
stepping\t: 6
flags\t\t: fpu vmx hypervisor
vmx flags\t: vnmi ept tsc_scaling
"""
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n"

MOUNTS = """\
22 1 0:22 / /proc rw - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
43 27 0:50 / /var/lib/fire\\040brick rw,nosuid,nodev - tmpfs tmpfs rw
44 27 0:51 / /srv rw - xfs /dev/vdb rw
45 27 0:52 / /srv rw,noexec - nfs4 server:/ rw
"""


def test_processors() -> None:
    """The first one counts; what its maker calls virtualisation is found, also where it is a line of its own."""
    amd, intel, arm = cpu_of(AMD), cpu_of(INTEL), cpu_of(ARM)
    assert (amd.vendor, amd.family, amd.model, amd.stepping) == ("AuthenticAMD", 23, 49, 0)
    assert (amd.extension, amd.is_guest) == ("svm", False)
    assert amd.model_name == "AMD EPYC 7702 64-Core Processor"
    assert (intel.extension, intel.is_guest) == ("vmx", True)
    assert intel.vmx_flags == {"vnmi", "ept", "tsc_scaling"}
    assert (arm.vendor, arm.extension, arm.flags) == ("", "", {"fp", "asimd"})
    assert cpu_of("").flags == frozenset()


@pytest.mark.parametrize(
    ("modules", "present", "lacking"),
    [
        (modules_of(in_sys=frozenset({"tun"}), builtin="", dependencies="", options=""), {"tun"}, set()),
        (
            modules_of(
                in_sys=frozenset(),
                builtin="kernel/drivers/net/tun.ko\n",
                dependencies="kernel/net/netfilter/nft_fwd_netdev.ko.xz: kernel/x.ko\n",
                options="",
            ),
            {"tun"},
            {"dm_thin_pool"},
        ),
        (
            modules_of(
                in_sys=frozenset(),
                builtin="",
                dependencies="",
                options="CONFIG_TUN=y\nCONFIG_DM_THIN_PROVISIONING=m\n# CONFIG_NFT_FWD_NETDEV is not set\n",
            ),
            {"tun"},
            {"nft_fwd_netdev", "dm_thin_pool"},
        ),
    ],
)
def test_modules(modules: Modules, present: set[str], lacking: set[str]) -> None:
    """Loaded, built in or loadable are all fine; where no list can be read, nothing is said to be missing. A module
    that the configuration names and no list holds is not there: a kernel without its modules' files cannot load it."""
    assert present <= modules.present
    names = ("tun", "nft_fwd_netdev", "dm_thin_pool")
    assert {name for name in names if modules.lacks(name)} == lacking


@pytest.mark.parametrize(
    ("path", "fstype", "option"),
    [
        ("/var/lib/fire brick/node", "tmpfs", "nodev"),
        ("/var/lib/firebrick", "ext4", "discard"),
        ("/srv/x", "nfs4", "noexec"),
    ],
)
def test_where_a_directory_lies(path: str, fstype: str, option: str) -> None:
    """The longest mount that holds it, and of two at one place the upper."""
    found = place_of(Path(path), parse_mountinfo(MOUNTS))
    assert found.fstype == fstype
    assert option in found.options


def test_swap_and_huge_pages() -> None:
    """Packed memory is no swap that matters; the word in brackets is the chosen one."""
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    assert swaps_of(head) == ()
    assert swaps_of(f"{head}/dev/zram0 partition 1 0 100\n/swapfile file 2 0 -2\n") == ("/swapfile",)
    assert (chosen_word("always [madvise] never\n"), chosen_word("")) == ("madvise", "")
