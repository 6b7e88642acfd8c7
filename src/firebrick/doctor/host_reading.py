"""Read what `host_facts.py` describes from this machine. Nothing is decided here, and nothing is changed."""

import errno
import gzip
import os
import platform
import resource
from pathlib import Path

from firebrick.config import Config
from firebrick.doctor.host_facts import (
    NO_LIMIT,
    Device,
    HostFacts,
    Modules,
    Place,
    ProcessLimits,
    chosen_word,
    cpu_of,
    modules_of,
    place_of,
    swaps_of,
)
from firebrick.linux.mount import parse_mountinfo

# CPUID's leaf in which hypervisors sign; the file is there where the module `cpuid` is.
_CPUID = Path("/dev/cpu/0/cpuid")
_HYPERVISOR_LEAF = 0x40000000
_CLOCKS = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource")
_KVM_MODULES = ("kvm_intel", "kvm_amd")
_CONTAINER_MARKS = (Path("/run/systemd/container"), Path("/run/.containerenv"), Path("/.dockerenv"))


def read_host(config: Config) -> HostFacts:
    """Some hundred small files; a file that is not there, or not ours to read, says nothing."""
    firmware = Path("/sys/class/dmi/id")
    memory = Path("/sys/kernel/mm")
    return HostFacts(
        architecture=platform.machine(),
        is_root=os.geteuid() == 0,
        cpu=cpu_of(_text(Path("/proc/cpuinfo"))),
        hypervisor=_hypervisor() or _text(Path("/sys/hypervisor/type")).strip(),
        product=" ".join(_text(firmware / name).strip() for name in ("sys_vendor", "product_name")).strip(),
        clocks=frozenset(_text(_CLOCKS).split()),
        container=next((str(mark) for mark in _CONTAINER_MARKS if mark.exists()), ""),
        kvm=_device(Path("/dev/kvm")),
        tun=_device(Path("/dev/net/tun")),
        modules=_modules(),
        kvm_parameters={name: _parameters(name) for name in _KVM_MODULES if Path("/sys/module", name).exists()},
        swaps=swaps_of(_text(Path("/proc/swaps"))),
        huge_pages=chosen_word(_text(memory / "transparent_hugepage" / "enabled")),
        reserved_mib=int(_text(memory / "hugepages" / "hugepages-2048kB" / "nr_hugepages").strip() or 0) * 2,
        wanted_reserved_mib=config.default_memory_mib if config.firecracker_huge_pages == "on" else 0,
        merges_pages=_text(memory / "ksm" / "run").strip() == "1",
        limits=ProcessLimits(
            process_count=_hard_limit(resource.RLIMIT_NPROC),
            locked_memory_bytes=_hard_limit(resource.RLIMIT_MEMLOCK),
        ),
        data=_place(config.data_dir),
        templates=_place(config.templates_dir),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _hypervisor() -> str:
    try:
        descriptor = os.open(_CPUID, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        # eax, then the signature in ebx, ecx, edx; a machine of its own answers with whatever its last leaf holds.
        signature = os.pread(descriptor, 16, _HYPERVISOR_LEAF)[4:].rstrip(b"\0")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return signature.decode() if signature.isascii() and signature.decode().isprintable() else ""


def _device(path: Path) -> Device:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Device(exists=False)
    except OSError as exc:
        return Device(exists=True, error=errno.errorcode.get(exc.errno or 0, "?"))
    return Device(exists=True)


def _modules() -> Modules:
    release = os.uname().release
    lists = Path("/lib/modules") / release
    try:
        options = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode(errors="replace")
    except (OSError, EOFError):
        options = _text(Path(f"/boot/config-{release}"))
    in_sys = Path("/sys/module")
    return modules_of(
        in_sys=frozenset(os.listdir(in_sys)) if in_sys.is_dir() else frozenset(),
        builtin=_text(lists / "modules.builtin"),
        dependencies=_text(lists / "modules.dep"),
        options=options,
    )


def _parameters(module: str) -> dict[str, str]:
    directory = Path("/sys/module") / module / "parameters"
    names = os.listdir(directory) if directory.is_dir() else []
    return {name: _text(directory / name).strip() for name in names}


def _hard_limit(which: int) -> int:
    _, hard = resource.getrlimit(which)
    return NO_LIMIT if hard == resource.RLIM_INFINITY else hard


def _place(path: Path) -> Place:
    """Of a directory that may be still to be made: where it would be."""
    made = next(place for place in (path, *path.parents) if place.exists()).resolve()
    return place_of(made, parse_mountinfo(_text(Path("/proc/self/mountinfo"))))
