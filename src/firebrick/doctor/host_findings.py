"""What is wrong with this machine, why it matters and what mends it. Pure: facts in, one result a finding out.

What only changes how the machine does elsewhere too (swap, huge pages, mounts) is `advice`, which we never run.
"""

from firebrick.doctor.host_facts import NO_LIMIT, Device, HostFacts
from firebrick.doctor.result import ProbeResult, ProbeStatus
from firebrick.doctor.virtualisation import virtualisation_finding

_OK, _WARN, _ABSENT = ProbeStatus.OK, ProbeStatus.WARN, ProbeStatus.ABSENT

_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
_MERGING = "/sys/kernel/mm/ksm/run"
# A monitor has some 32 threads and a gVisor machine some 50, and those of one user are counted together.
_LEAST_PROCESS_COUNT = 4096
_VOLATILE = frozenset({"tmpfs", "ramfs"})
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "ceph"})
_NEEDED_MODULES = {
    "tun": "gives a microVM its network link",
    "nft_fwd_netdev": "joins that link to the sandbox's slot",
}
_OPTIONAL_MODULES = ("dm_thin_pool",)


def host_findings(facts: HostFacts, *, boots: bool | None) -> tuple[ProbeResult, ...]:
    """`boots`: whether a guest has booted here; None: nobody tried."""
    return (
        virtualisation_finding(facts, boots=boots),
        cpu_finding(facts),
        kvm_finding(facts),
        tun_finding(facts),
        modules_finding(facts),
        place_finding(facts),
        swap_finding(facts),
        huge_pages_finding(facts),
        reserved_pages_finding(facts),
        merging_finding(facts),
        limits_finding(facts),
    )


def cpu_finding(facts: HostFacts) -> ProbeResult:
    """Who it is, for memory goes on only where the processor is the same, and whether its clock can be scaled."""
    cpu = facts.cpu
    who = f"{cpu.vendor} {cpu.model_name}".strip() or facts.architecture
    summary = f"{who} (family {cpu.family}, model {cpu.model}, stepping {cpu.stepping})"
    if facts.architecture != "x86_64":
        why = "Templates and microVMs are set up on x86-64 only as yet; gVisor and containers may work."
        return ProbeResult(name="cpu", status=_WARN, summary=f"{facts.architecture}: {who}", why=why)
    if cpu.extension and not {"constant_tsc", "nonstop_tsc"} <= cpu.flags:
        why = "Its clock (TSC) does not tick evenly: guests take a slower one, and may see time jump after a pause."
        return ProbeResult(name="cpu", status=_WARN, summary=f"{summary}, TSC not constant", why=why)
    if cpu.extension and "tsc_scale" not in cpu.flags and "tsc_scaling" not in cpu.vmx_flags:
        summary += "; memory of machines with another clock rate cannot go on here (no TSC scaling)"
    return ProbeResult(name="cpu", status=_OK, summary=summary)


def kvm_finding(facts: HostFacts) -> ProbeResult:
    return _device_finding("kvm device", "/dev/kvm", facts.kvm, facts, module="kvm", number="10 232")


def tun_finding(facts: HostFacts) -> ProbeResult:
    return _device_finding("tun device", "/dev/net/tun", facts.tun, facts, module="tun", number="10 200")


def _device_finding(name: str, path: str, device: Device, facts: HostFacts, *, module: str, number: str) -> ProbeResult:
    if device.opens:
        return ProbeResult(name=name, status=_OK, summary=f"{path} opens")
    container = f" In a container, start it with `--device {path}`." if facts.container else ""
    if not device.exists:
        why = f"MicroVMs need it.{container}"
        make = (("modprobe", module), ("mkdir", "-p", path.rpartition("/")[0]), ("mknod", path, "c", *number.split()))
        # Where no guest can boot, nothing is wrong with a machine without.
        status = _WARN if module == "tun" and facts.kvm.opens else _ABSENT
        return ProbeResult(
            name=name, status=status, summary=f"{path} is not there", why=why, advice=() if module == "kvm" else make
        )  # fmt: skip
    summary = f"{path} cannot be opened: {device.error}"
    if device.error in ("ENODEV", "ENXIO", "ENOENT"):
        why = "The file is there, and no module behind it."
        return ProbeResult(name=name, status=_WARN, summary=summary, why=why, advice=(("modprobe", module),))
    if facts.is_root:
        why = f"Not even root may: a container's device rules or a security module forbid it.{container}"
        return ProbeResult(name=name, status=_WARN, summary=summary, why=why)
    why = "Root may; the node agent runs as root, so this matters to your own tests only."
    return ProbeResult(name=name, status=_WARN, summary=summary, why=why, advice=(("sudo", "chmod", "666", path),))


def modules_finding(facts: HostFacts) -> ProbeResult:
    name = "kernel modules"
    optional = [module for module in _OPTIONAL_MODULES if facts.modules.lacks(module)]
    beside = f"; without {', '.join(optional)}, which only disks cloned by device mapper need" if optional else ""
    if not facts.modules.is_listed:
        why = "Neither the kernel's configuration nor its list of modules can be read: trying is the only way."
        return ProbeResult(name=name, status=_ABSENT, summary="not known", why=why)
    missing = [module for module in _NEEDED_MODULES if facts.modules.lacks(module)]
    if not missing:
        return ProbeResult(name=name, status=_OK, summary=f"{', '.join(_NEEDED_MODULES)} are there{beside}")
    return ProbeResult(
        name=name,
        # Only microVMs need them.
        status=_WARN if facts.kvm.opens else _ABSENT,
        summary=f"the kernel has no {', '.join(missing)}{beside}",
        why=" ".join(f"{module} {_NEEDED_MODULES[module]}." for module in missing)
        + " Take a kernel that has them, such as your distribution's own.",
    )


def place_finding(facts: HostFacts) -> ProbeResult:
    """Where everything is kept: what its filesystem forbids, and what it forgets."""
    name, place = "data directory", facts.data
    summary = f"{place.path} on {place.fstype or 'an unknown filesystem'}, mounted at {place.mounted_at}"
    if facts.templates.mounted_at != place.mounted_at:
        # Fine: what lies elsewhere is bound, not linked.
        summary += f"; templates on {facts.templates.fstype}, mounted at {facts.templates.mounted_at}"
    at = str(place.mounted_at)
    if "noexec" in place.options:
        why = "Programs there cannot start, and ours (runsc, firecracker, the guest agent) lie there."
        return ProbeResult(
            name=name, status=_WARN, summary=f"{summary}, noexec", why=f"{why} Allow it, or set FIREBRICK_DATA_DIR.",
            advice=(("mount", "-o", "remount,exec", at),),
        )  # fmt: skip
    if "nodev" in place.options:
        why = "Device files do not work there: a microVM's jail has its /dev/kvm in it, and no monitor starts."
        return ProbeResult(
            name=name, status=_WARN, summary=f"{summary}, nodev", why=f"{why} Allow it, or set FIREBRICK_DATA_DIR.",
            advice=(("mount", "-o", "remount,dev", at),),
        )  # fmt: skip
    if place.fstype in _VOLATILE:
        why = "It is memory, and gone at the next start. Set FIREBRICK_DATA_DIR to a disk."
        return ProbeResult(name=name, status=_WARN, summary=summary, why=why)
    if place.fstype in _REMOTE:
        why = "It is another machine's: disks of sandboxes are slow there, and hang when it does."
        return ProbeResult(name=name, status=_WARN, summary=summary, why=why)
    if place.fstype == "overlay":
        why = "It is a container's own layer: slow, and gone with the container. Give it a volume."
        return ProbeResult(name=name, status=_WARN, summary=summary, why=why)
    return ProbeResult(name=name, status=_OK, summary=summary)


def swap_finding(facts: HostFacts) -> ProbeResult:
    if not facts.swaps:
        return ProbeResult(name="swap", status=_OK, summary="none")
    why = (
        "What sandboxes hold in memory may be written there and be read by whoever gets the disk, and comes back "
        "slowly. It lets paused sandboxes take less memory; where that is wanted, encrypt it."
    )
    return ProbeResult(
        name="swap", status=_WARN, summary=", ".join(facts.swaps), why=why, advice=(("swapoff", "--all"),)
    )


def huge_pages_finding(facts: HostFacts) -> ProbeResult:
    name = "huge pages"
    if facts.huge_pages != "always":
        return ProbeResult(name=name, status=_OK, summary=f"transparent ones: {facts.huge_pages or 'not there'}")
    why = (
        "The kernel puts 2 MiB where a sandbox touched 4 KiB and moves its pages behind its back: idle sandboxes take "
        "more memory, and answers come unevenly. `madvise` leaves it to programs that ask."
    )
    return ProbeResult(
        name=name, status=_WARN, summary="transparent ones: always", why=why,
        advice=(("sh", "-c", f"echo madvise > {_HUGE_PAGES}"),),
    )  # fmt: skip


def reserved_pages_finding(facts: HostFacts) -> ProbeResult:
    """Pages of 2 MiB that microVMs are to have, by the setting `firecracker_huge_pages`."""
    name = "reserved pages"
    if not facts.wanted_reserved_mib:
        return ProbeResult(name=name, status=_OK, summary="not asked for")
    summary = f"{facts.reserved_mib} MiB in pages of 2 MiB"
    if facts.reserved_mib >= facts.wanted_reserved_mib:
        return ProbeResult(name=name, status=_OK, summary=summary)
    why = (
        "`firecracker_huge_pages` is on, and not one sandbox of the base template fits into them. Reserve what all "
        "sandboxes at once may use, early after the host's start: what is reserved nothing else can use."
    )
    count = -(-facts.wanted_reserved_mib // 2)
    return ProbeResult(
        name=name, status=_WARN, summary=summary, why=why, advice=(("sysctl", "-w", f"vm.nr_hugepages={count}"),)
    )


def merging_finding(facts: HostFacts) -> ProbeResult:
    """Kernel samepage merging."""
    if not facts.merges_pages:
        return ProbeResult(name="page merging", status=_OK, summary="off")
    why = "Equal pages of two sandboxes become one, and the time of a write tells one what the other holds."
    return ProbeResult(
        name="page merging", status=_WARN, summary="on (KSM)", why=why, advice=(("sh", "-c", f"echo 0 > {_MERGING}"),)
    )


def limits_finding(facts: HostFacts) -> ProbeResult:
    name, count, locked = "process limits", facts.limits.process_count, facts.limits.locked_memory_bytes
    summary = f"processes: {_limit(count)}, locked memory: {_limit(locked, ' bytes')}"
    if count != NO_LIMIT and count < _LEAST_PROCESS_COUNT:
        why = "Sandboxes' machines inherit it, and cannot start their threads. Raise LimitNPROC of the service, or:"
        return ProbeResult(
            name=name, status=_WARN, summary=summary, why=why, advice=(("ulimit", "-Hu", "unlimited"),)
        )  # fmt: skip
    return ProbeResult(name=name, status=_OK, summary=summary)


def _limit(value: int, unit: str = "") -> str:
    return "no limit" if value == NO_LIMIT else f"{value}{unit}"
