"""What a machine whose memory was saved needs to go on: facts of the save and of a host, and why they do not fit. Pure.

A save is a directory:

    memory      the guest's memory, with holes where it is zero
    state       its processors and devices, in the monitor's format
    agent       the drive with the guest agent that it had: a filesystem that is mounted cannot be exchanged
    facts.json  what is told here; written last, so a save without it was never finished
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any, TypeVar

from firebrick.runtimes.firecracker.plan import MEMORY, STATE, Network, Rates

AGENT, FACTS = "agent", "facts.json"
MOST_STATE_BYTES = 16 << 20
"""The monitor reads no state of more than 10 MiB."""
MOST_FACTS_BYTES = 1 << 16
_LAYOUT = 1

_FEATURES = """
3dnowprefetch abm adx aes amx_bf16 amx_complex amx_fp16 amx_int8 amx_tile avx avx2 avx512_4fmaps avx512_4vnniw
avx512_bf16 avx512_bitalg avx512_fp16 avx512_vbmi2 avx512_vnni avx512_vp2intersect avx512_vpopcntdq avx512bw
avx512cd avx512dq avx512er avx512f avx512ifma avx512pf avx512vbmi avx512vl avx_ifma avx_ne_convert avx_vnni
avx_vnni_int8 bmi1 bmi2 cldemote clflush clflushopt clwb clzero cmov cmpccxadd cx16 cx8 erms f16c fma fma4 fsgsbase
fsrm fxsr gfni hle invpcid lahf_lm lm misalignsse mmx mmxext movbe movdir64b movdiri mpx nx ospke pcid pclmulqdq
pdpe1gb pku pni popcnt prefetchi prefetchiti rdpid rdrand rdseed rdtscp rtm serialize sha_ni smap smep sse sse2
sse4_1 sse4_2 sse4a ssse3 syscall tbm tsxldtrk umip vaes vpclmulqdq waitpkg wbnoinvd xgetbv1 xop xsave xsavec
xsaveopt xsaves
"""
GUEST_FEATURES = frozenset(_FEATURES.split())
"""What a program inside may have found and use, as the kernel names it; what else a processor has is the host's."""

_MAGIC = (0x0710_1984_8664_0000).to_bytes(8, "little")
T = TypeVar("T")

_VERSION = re.compile(r"v?(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """As /proc/cpuinfo tells it; `features` are those that guests see."""

    vendor: str
    family: int
    model: int
    features: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What of a host a save depends on."""

    processor: Processor
    kernel: str
    snapshot_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """How a machine was started, kept beside its jail for whoever saves it.

    Attributes:
        is_restored: from another's memory.
        tracks: its monitor remembers which pages are written.
        is_huge: its memory is in pages of 2 MiB.
    """

    user_id: int
    cpu_count: int
    memory_mib: int
    guest_kernel_sha256: str
    initramfs_sha256: str
    network: Network | None
    rates: Rates
    is_restored: bool
    tracks: bool = False
    is_huge: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """`sha256` is "" where reading all of it at each start would cost more than it protects."""

    size_bytes: int
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveFacts:
    """A save's facts.json. `host` is where it was made; its `snapshot_version` the state's own."""

    firecracker: str
    host: Host
    started: Started
    files: Mapping[str, SavedFile]


def refusal(save: SaveFacts, host: Host) -> str:
    """Why it cannot go on here, for the sandbox's owner; "": it can."""
    then, now = save.host.processor, host.processor
    if then.vendor != now.vendor:
        return f"It was saved on a processor of {then.vendor}, and this one is of {now.vendor}."
    if missing := sorted(then.features - now.features):
        return f"It was saved on a processor that has what this one has not: {', '.join(missing)}."
    if not _reads(host.snapshot_version, save.host.snapshot_version):
        return (
            f"It was saved by Firecracker {save.firecracker}, whose format {save.host.snapshot_version} the one here "
            f"does not read; it reads {host.snapshot_version}."
        )
    if _numbers(host.kernel)[:2] < _numbers(save.host.kernel)[:2]:
        return f"It was saved on a kernel ({save.host.kernel}) newer than the one here ({host.kernel})."
    return ""


def _reads(own: str, saved: str) -> bool:
    """The monitor's own rule: equal in the first number, and not newer in the second."""
    (major, minor, _), (saved_major, saved_minor, _) = _numbers(own), _numbers(saved)
    return major == saved_major and saved_minor <= minor


def _numbers(version: str) -> tuple[int, int, int]:
    found = _VERSION.match(version)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (0, 0, 0)


def tracks_from_start(transparent_hugepage: str) -> bool:
    """Whether the monitor of a fresh machine remembers what is written, so that its first save writes no more.

    Args: transparent_hugepage: the host's /sys/kernel/mm/transparent_hugepage/enabled. A guest whose memory the kernel
        would give in large pages would lose them; it does so unasked only where it says `always`.
    """
    return "[always]" not in transparent_hugepage


def misfit(save: SaveFacts, *, cpu_count: int, memory_mib: int) -> str:
    """Why a machine with these limits cannot go on from it; "": it can. A guest's size cannot change under it."""
    then = (save.started.cpu_count, save.started.memory_mib)
    if then == (cpu_count, memory_mib):
        return ""
    return f"It was saved with {then[0]} CPUs and {then[1]} MiB, not {cpu_count} and {memory_mib}."


def damage(save: SaveFacts, sizes: Mapping[str, int], state: bytes) -> str:
    """What is wrong with its files, whose sizes and state were read; "": nothing that can be seen."""
    for name, file in save.files.items():
        if sizes.get(name) != file.size_bytes:
            return f"Its file '{name}' is missing or damaged."
    if hashlib.sha256(state).hexdigest() != save.files[STATE].sha256:
        return f"Its file '{STATE}' is damaged."
    return ""


def read_processor(cpuinfo: str) -> Processor:
    """The first processor of /proc/cpuinfo (proc(5)); what is not told is empty or 0."""
    found: dict[str, str] = {}
    for line in cpuinfo.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        found[name.strip()] = value.strip()

    def number(name: str) -> int:
        return int(found[name]) if found.get(name, "").isdigit() else 0

    return Processor(
        vendor=found.get("vendor_id", ""),
        family=number("cpu family"),
        model=number("model"),
        features=frozenset(found.get("flags", "").split()) & GUEST_FEATURES,
    )


def state_version(state: bytes) -> str:
    """The format's version in a state's head: eight bytes of magic, and a text with its length before it.

    Raises: ValueError — this is no state of a microVM of this architecture.
    """
    if state[:8] != _MAGIC:
        raise ValueError("this is no state of a microVM")
    length = int.from_bytes(state[8:16], "little")
    version = state[16 : 16 + length].decode("ascii", errors="replace") if length <= 32 else ""
    if not _VERSION.fullmatch(version):
        raise ValueError("the state names no version")
    return version


def started_to_json(started: Started) -> str:
    return json.dumps(_started_out(started))


def started_from_json(text: str) -> Started:
    """Raises ValueError."""
    return _parsed(text, _started_in)


def facts_to_json(facts: SaveFacts) -> str:
    host = facts.host
    return json.dumps(
        {
            "layout": _LAYOUT,
            "firecracker": facts.firecracker,
            "snapshot_version": host.snapshot_version,
            "host_kernel": host.kernel,
            "processor": {
                "vendor": host.processor.vendor,
                "family": host.processor.family,
                "model": host.processor.model,
                "features": sorted(host.processor.features),
            },
            "started": _started_out(facts.started),
            "files": {name: {"bytes": file.size_bytes, "sha256": file.sha256} for name, file in facts.files.items()},
        },
        indent=1,
    )


def facts_from_json(text: str) -> SaveFacts:
    """Raises ValueError: it is damaged, or of a layout that is not known here."""
    return _parsed(text, _facts_in)


def _parsed(text: str, read: Callable[[Any], T]) -> T:
    try:
        return read(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ValueError("the facts cannot be read") from exc


def _facts_in(found: Any) -> SaveFacts:
    if found["layout"] != _LAYOUT:
        raise ValueError("another layout")
    processor = found["processor"]
    files = {
        str(name): SavedFile(size_bytes=int(file["bytes"]), sha256=str(file["sha256"]))
        for name, file in found["files"].items()
    }
    if set(files) != {MEMORY, STATE, AGENT}:
        raise ValueError("other files")
    return SaveFacts(
        firecracker=str(found["firecracker"]),
        host=Host(
            processor=Processor(
                vendor=str(processor["vendor"]),
                family=int(processor["family"]),
                model=int(processor["model"]),
                features=frozenset(map(str, processor["features"])),
            ),
            kernel=str(found["host_kernel"]),
            snapshot_version=str(found["snapshot_version"]),
        ),
        started=_started_in(found["started"]),
        files=files,
    )


def _started_out(started: Started) -> dict[str, Any]:
    network = started.network
    return {
        "user_id": started.user_id,
        "cpu_count": started.cpu_count,
        "memory_mib": started.memory_mib,
        "guest_kernel_sha256": started.guest_kernel_sha256,
        "initramfs_sha256": started.initramfs_sha256,
        "network": network
        and {
            "mac": network.mac,
            "address": str(network.address),
            "gateway": network.gateway,
            "mtu_bytes": network.mtu_bytes,
        },
        "disk_bytes_per_s": started.rates.disk_bytes_per_s,
        "network_bytes_per_s": started.rates.network_bytes_per_s,
        "is_restored": started.is_restored,
        "tracks": started.tracks,
        "is_huge": started.is_huge,
    }  # fmt: skip


def _started_in(found: Any) -> Started:
    network = found["network"]
    return Started(
        user_id=int(found["user_id"]),
        cpu_count=int(found["cpu_count"]),
        memory_mib=int(found["memory_mib"]),
        guest_kernel_sha256=str(found["guest_kernel_sha256"]),
        initramfs_sha256=str(found["initramfs_sha256"]),
        network=network
        and Network(
            mac=str(network["mac"]),
            address=IPv4Interface(network["address"]),
            gateway=str(network["gateway"]),
            mtu_bytes=int(network["mtu_bytes"]),
        ),
        rates=Rates(
            disk_bytes_per_s=int(found["disk_bytes_per_s"]), network_bytes_per_s=int(found["network_bytes_per_s"])
        ),
        is_restored=bool(found["is_restored"]),
        # Earlier versions of ours wrote no such words, and let no monitor do it.
        tracks=bool(found.get("tracks", False)),
        is_huge=bool(found.get("is_huge", False)),
    )
