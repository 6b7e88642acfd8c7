"""What this machine is made of, as far as virtual machines and sandboxes depend on it. Pure: text in, facts out.

`host_reading.py` fills these in one place; `host_findings.py` and `virtualisation.py` decide what follows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from firebrick.linux.mount import MountEntry

MICROVM_MODULES = {
    "tun": "CONFIG_TUN",
    "nft_fwd_netdev": "CONFIG_NFT_FWD_NETDEV",
    "dm_thin_pool": "CONFIG_DM_THIN_PROVISIONING",
    "kvm_intel": "CONFIG_KVM_INTEL",
    "kvm_amd": "CONFIG_KVM_AMD",
}
"""{kernel module: the option that builds it in}."""

NO_LIMIT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The first processor, from /proc/cpuinfo. `vmx_flags`: what Intel's virtualisation can, on a line of its own."""

    vendor: str = ""
    model_name: str = ""
    family: int = 0
    model: int = 0
    stepping: int = 0
    flags: frozenset[str] = frozenset()
    vmx_flags: frozenset[str] = frozenset()

    @property
    def is_guest(self) -> bool:
        return "hypervisor" in self.flags

    @property
    def extension(self) -> str:
        """`vmx`, `svm` or ""."""
        return next((name for name in ("vmx", "svm") if name in self.flags), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device file. `error`: what opening it for reading and writing answered, as an errno's name; "": it opened."""

    exists: bool
    error: str = ""

    @property
    def opens(self) -> bool:
        return self.exists and not self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """Kernel modules by name, with underscores. `is_listed`: whether the kernel's lists were there to read."""

    present: frozenset[str] = frozenset()
    loadable: frozenset[str] = frozenset()
    is_listed: bool = False

    def lacks(self, name: str) -> bool:
        """Known not to be had."""
        return self.is_listed and name not in self.present | self.loadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The filesystem that holds a directory of ours."""

    path: Path
    mounted_at: Path
    fstype: str
    options: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """Hard limits of our own process, which those that it starts inherit; NO_LIMIT: none."""

    process_count: int = NO_LIMIT
    locked_memory_bytes: int = NO_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Attributes:
    hypervisor: what the processor says it runs under: `KVMKVMKVM`, `TCGTCGTCGTCG`, …; "": not known, or none.
    product: maker and product as the firmware tells them, which of virtual machines name the hypervisor.
    clocks: those the kernel found; `kvm-clock` is there under KVM only.
    kvm_parameters: {module: {parameter: value}} of kvm_intel and kvm_amd.
    container: what says that this is a container; "": nothing does.
    huge_pages: the chosen word of transparent_hugepage/enabled; "" without them.
    reserved_mib: what the host has set aside in pages of 2 MiB.
    wanted_reserved_mib: the least that the settings ask for; 0: nothing.
    """

    architecture: str
    is_root: bool
    cpu: Cpu
    hypervisor: str = ""
    product: str = ""
    clocks: frozenset[str] = frozenset()
    container: str = ""
    kvm: Device
    tun: Device
    modules: Modules = Modules()
    kvm_parameters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    swaps: tuple[str, ...] = ()
    huge_pages: str = ""
    reserved_mib: int = 0
    wanted_reserved_mib: int = 0
    merges_pages: bool = False
    limits: ProcessLimits = ProcessLimits()
    data: Place
    templates: Place


def cpu_of(cpuinfo: str) -> Cpu:
    first = cpuinfo.partition("\n\n")[0]
    fields: dict[str, str] = dict(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", first, re.MULTILINE))

    def number(name: str) -> int:
        text = fields.get(name, "")
        return int(text) if text.isdigit() else 0

    return Cpu(
        vendor=fields.get("vendor_id", ""),
        model_name=fields.get("model name", ""),
        family=number("cpu family"),
        model=number("model"),
        stepping=number("stepping"),
        flags=frozenset(fields.get("flags", fields.get("Features", "")).split()),
        vmx_flags=frozenset(fields.get("vmx flags", "").split()),
    )


def modules_of(*, in_sys: frozenset[str], builtin: str, dependencies: str, options: str) -> Modules:
    """From /sys/module, the release's modules.builtin and modules.dep, and the kernel's configuration."""
    named = {_module_name(line) for line in builtin.splitlines() if line}
    chosen = dict(re.findall(r"^(CONFIG_\w+)=([ym])$", options, re.MULTILINE))
    built_in = {name for name, option in MICROVM_MODULES.items() if chosen.get(option) == "y"}
    return Modules(
        present=frozenset(in_sys | named | built_in),
        loadable=frozenset(_module_name(line.partition(":")[0]) for line in dependencies.splitlines() if line),
        is_listed=bool(dependencies or options),
    )


def place_of(path: Path, mounts: tuple[MountEntry, ...]) -> Place:
    """`path` must be resolved. Of mounts over one another the last one counts."""
    holders = [entry for entry in mounts if path.is_relative_to(entry.target)]
    if not holders:
        return Place(path=path, mounted_at=Path("/"), fstype="", options=frozenset())
    longest = max(len(entry.target.parts) for entry in holders)
    found = [entry for entry in holders if len(entry.target.parts) == longest][-1]
    return Place(
        path=path, mounted_at=found.target, fstype=found.fstype, options=frozenset(found.options.split(","))
    )  # fmt: skip


def swaps_of(text: str) -> tuple[str, ...]:
    """From /proc/swaps: files and devices. Memory that is packed (zram) is none: nothing of it reaches a disk."""
    names = [line.split()[0] for line in text.splitlines()[1:] if line.strip()]
    return tuple(name for name in names if not name.startswith("/dev/zram"))


def chosen_word(text: str) -> str:
    """The one in brackets: `always [madvise] never`."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else ""


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")
