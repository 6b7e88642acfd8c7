"""What follows from the facts of a machine: which kind of virtualisation, what is wrong, and what mends it."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from firebrick.config import load_config
from firebrick.doctor import runtime_probes
from firebrick.doctor.doctor import guest_boots
from firebrick.doctor.host_facts import Cpu, Device, HostFacts, Modules, Place, ProcessLimits
from firebrick.doctor.host_findings import host_findings
from firebrick.doctor.result import ProbeResult, ProbeStatus
from firebrick.doctor.virtualisation import Virtualisation, kind_of, virtualisation_finding
from firebrick.runtimes.firecracker.plan import Tools

OK, WARN, FAIL, ABSENT = ProbeStatus.OK, ProbeStatus.WARN, ProbeStatus.FAIL, ProbeStatus.ABSENT
DATA = Place(path=Path("/data"), mounted_at=Path("/"), fstype="ext4", options=frozenset({"rw"}))
EVEN = frozenset({"constant_tsc", "nonstop_tsc", "tsc_scale"})
SVM, GUEST_SVM, GUEST = EVEN | {"svm"}, EVEN | {"svm", "hypervisor"}, EVEN | {"hypervisor"}
AMD: Mapping[str, Mapping[str, str]] = {"kvm_amd": {"npt": "Y", "nested": "1"}}
INTEL: Mapping[str, Mapping[str, str]] = {"kvm_intel": {"ept": "Y", "nested": "N"}}
THERE, AWAY = Device(exists=True), Device(exists=False)
LISTED = Modules(present=frozenset({"tun"}), loadable=frozenset({"nft_fwd_netdev", "dm_thin_pool"}), is_listed=True)


def facts(flags: frozenset[str] = SVM, **changes: object) -> HostFacts:
    given: dict[str, object] = {
        "architecture": "x86_64", "is_root": True, "cpu": Cpu(vendor="AuthenticAMD", model_name="EPYC", flags=flags),
        "kvm": THERE, "tun": THERE, "modules": LISTED, "kvm_parameters": AMD, "data": DATA, "templates": DATA,
    }  # fmt: skip
    return HostFacts(**(given | changes))  # type: ignore[arg-type]


def place(fstype: str, *options: str) -> Place:
    return Place(path=Path("/data"), mounted_at=Path("/data"), fstype=fstype, options=frozenset(options))


PVM = facts(GUEST, kvm_parameters={}, modules=Modules(present=frozenset({"kvm_pvm"})), hypervisor="KVMKVMKVM")
EMULATED = facts(GUEST_SVM, hypervisor="TCGTCGTCGTCG")
UNSIGNED = facts(GUEST_SVM, product="QEMU Standard PC", clocks=frozenset({"tsc", "hpet"}))
NESTED = facts(GUEST_SVM, hypervisor="KVMKVMKVM")

KINDS = [
    (facts(), Virtualisation.BARE_METAL),
    (facts(EVEN | {"vmx"}, kvm_parameters=INTEL), Virtualisation.BARE_METAL),
    (NESTED, Virtualisation.NESTED),
    (facts(GUEST_SVM), Virtualisation.NESTED),
    (EMULATED, Virtualisation.EMULATED),
    (UNSIGNED, Virtualisation.EMULATED),
    (facts(GUEST_SVM, product="QEMU Standard PC", clocks=frozenset({"kvm-clock"})), Virtualisation.NESTED),
    (PVM, Virtualisation.PAGE_TABLE),
    # Whatever the module may be called: a device that opens, and a processor that cannot.
    (facts(GUEST, kvm_parameters={}), Virtualisation.PAGE_TABLE),
    # On a machine of its own too, where the module was loaded in the place of the usual ones.
    (facts(SVM, kvm_parameters={}, modules=Modules(present=frozenset({"kvm_pvm"}))), Virtualisation.PAGE_TABLE),
    (facts(SVM, kvm_parameters={}, kvm=AWAY), Virtualisation.NOT_LOADED),
    (facts(GUEST_SVM, kvm_parameters={}, kvm=AWAY), Virtualisation.NOT_LOADED),
    (facts(GUEST, kvm_parameters={}, kvm=AWAY), Virtualisation.NOT_NESTED),
    (facts(EVEN, kvm_parameters={}, kvm=AWAY), Virtualisation.SWITCHED_OFF),
]


@pytest.mark.parametrize(("host", "kind"), KINDS)
def test_kinds_of_virtualisation(host: HostFacts, kind: Virtualisation) -> None:
    """Told by module, flags, hypervisor and device together; and each has an answer where no guest boots."""
    assert kind_of(host) is kind
    failed = virtualisation_finding(host, boots=False)
    assert failed.status is WARN
    assert kind in failed.summary
    assert failed.why
    untried = virtualisation_finding(host, boots=None)
    assert (untried.status, untried.why) == (ABSENT, failed.why)


@pytest.mark.parametrize(
    ("host", "status", "said"),
    [
        (facts(), OK, "bare metal, kvm_amd with NPT, guests may nest; a guest boots"),
        (facts(EVEN | {"vmx"}, kvm_parameters=INTEL), OK, "bare metal, kvm_intel with EPT; a guest boots"),
        (NESTED, OK, "nested, kvm_amd with NPT, guests may nest, itself under KVMKVMKVM; a guest boots"),
        (facts(GUEST_SVM, product="Google Compute Engine"), OK, "itself under Google Compute Engine; a guest boots"),
        (EMULATED, WARN, "emulated"),
        (facts(GUEST_SVM, kvm_parameters={"kvm_amd": {"npt": "N"}}), WARN, "kvm_amd without NPT"),
        # A guest has booted: what the facts made one fear is no longer of interest.
        (PVM, OK, "page-table-virtualised KVM, itself under KVMKVMKVM; a guest boots"),
    ],
)
def test_a_guest_that_boots_is_the_proof(host: HostFacts, status: ProbeStatus, said: str) -> None:
    found = virtualisation_finding(host, boots=True)
    assert found.status is status
    assert said in found.summary


@pytest.mark.parametrize(
    ("wanted", "host", "tried"),
    [("auto", PVM, False), ("gvisor", PVM, False), ("firecracker", PVM, True), ("auto", NESTED, True)],
)
async def test_a_guest_is_booted_where_one_may_boot_or_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: str, host: HostFacts, tried: bool
) -> None:
    """On page tables alone it would take a minute at each `up` to find out what is known."""
    booted: list[Tools] = []

    async def boot(tools: Tools, *, patience: float) -> ProbeResult:
        booted.append(tools)
        return ProbeResult(name="firecracker", status=OK, summary="")

    monkeypatch.setattr(runtime_probes, "read_host", lambda config: host)
    monkeypatch.setattr(runtime_probes, "probe_firecracker", boot)
    config = load_config({}, data_dir=tmp_path, runtime=wanted)
    result = await runtime_probes.probe_microvms(config, Tools(directory=tmp_path))
    assert (bool(booted), result.status) == (tried, OK if tried else ABSENT)


def test_the_mend_of_a_module_that_is_not_loaded_is_its_own() -> None:
    """Of AMD's, and in a container the hint that it may be only the file that is missing."""
    found = virtualisation_finding(
        facts(SVM, kvm_parameters={}, kvm=AWAY, container="/.dockerenv"), boots=None
    )  # fmt: skip
    assert ("modprobe", "kvm_amd") in found.advice
    assert "--device /dev/kvm" in found.why


@pytest.mark.parametrize(
    ("results", "is_root", "boots"),
    [
        ([("firecracker", OK)], True, True),
        ([("firecracker", FAIL), ("gvisor", OK)], True, False),
        ([("firecracker", FAIL)], False, None),
        ([("firecracker", ABSENT)], True, None),
        ([("gvisor", OK)], True, None),
    ],
)
def test_whether_a_guest_boots(results: list[tuple[str, ProbeStatus]], is_root: bool, boots: bool | None) -> None:
    """Only a probe that tried says anything."""
    given = [ProbeResult(name=name, status=status, summary="") for name, status in results]
    assert guest_boots(given, is_root=is_root) is boots


def finding(host: HostFacts, name: str) -> ProbeResult:
    return next(result for result in host_findings(host, boots=None) if result.name == name)


FINDINGS = [
    ("cpu", facts(), OK, "AuthenticAMD EPYC (family 0, model 0, stepping 0)"),
    ("cpu", facts(SVM - {"tsc_scale"}), OK, "no TSC scaling"),
    ("cpu", facts(SVM - {"nonstop_tsc"}), WARN, "TSC not constant"),
    ("cpu", facts(architecture="aarch64"), WARN, "aarch64"),
    ("kvm device", facts(), OK, "/dev/kvm opens"),
    ("kvm device", facts(kvm=AWAY), ABSENT, "not there"),
    ("kvm device", facts(kvm=Device(exists=True, error="ENODEV")), WARN, "ENODEV"),
    ("kvm device", facts(kvm=Device(exists=True, error="EPERM")), WARN, "EPERM"),
    ("kvm device", facts(kvm=Device(exists=True, error="EACCES"), is_root=False), WARN, "EACCES"),
    ("tun device", facts(), OK, "/dev/net/tun opens"),
    ("tun device", facts(tun=AWAY), WARN, "not there"),
    ("tun device", facts(tun=AWAY, kvm=AWAY), ABSENT, "not there"),
    ("kernel modules", facts(), OK, "tun, nft_fwd_netdev are there"),
    ("kernel modules", facts(modules=Modules()), ABSENT, "not known"),
    (
        "kernel modules",
        facts(modules=Modules(present=frozenset({"tun"}), is_listed=True)),
        WARN,
        "no nft_fwd_netdev; without dm_thin_pool, which only disks cloned by device mapper need",
    ),
    ("kernel modules", facts(modules=Modules(is_listed=True), kvm=AWAY), ABSENT, "no tun, nft_fwd_netdev"),
    ("data directory", facts(), OK, "/data on ext4, mounted at /"),
    ("data directory", facts(templates=place("xfs")), OK, "templates on xfs, mounted at /data"),
    ("data directory", facts(data=place("ext4", "nodev")), WARN, "nodev"),
    ("data directory", facts(data=place("ext4", "noexec", "nodev")), WARN, "noexec"),
    ("data directory", facts(data=place("tmpfs")), WARN, "tmpfs"),
    ("data directory", facts(data=place("nfs4")), WARN, "nfs4"),
    ("data directory", facts(data=place("overlay")), WARN, "overlay"),
    ("swap", facts(), OK, "none"),
    ("swap", facts(swaps=("/swapfile",)), WARN, "/swapfile"),
    ("huge pages", facts(huge_pages="madvise"), OK, "madvise"),
    ("huge pages", facts(huge_pages="always"), WARN, "always"),
    ("reserved pages", facts(reserved_mib=64), OK, "not asked for"),
    ("reserved pages", facts(reserved_mib=1024, wanted_reserved_mib=1024), OK, "1024 MiB"),
    ("reserved pages", facts(reserved_mib=64, wanted_reserved_mib=1024), WARN, "64 MiB"),
    ("page merging", facts(), OK, "off"),
    ("page merging", facts(merges_pages=True), WARN, "KSM"),
    ("process limits", facts(), OK, "no limit"),
    ("process limits", facts(limits=ProcessLimits(process_count=1024, locked_memory_bytes=65536)), WARN, "1024"),
]


@pytest.mark.parametrize(("name", "host", "status", "said"), FINDINGS)
def test_findings(name: str, host: HostFacts, status: ProbeStatus, said: str) -> None:
    """Each says what was found, and where something is wrong, why it matters."""
    found = finding(host, name)
    assert found.status is status
    assert said in found.summary
    assert found.why or status is OK


def test_only_the_owner_changes_the_machine() -> None:
    """`firebrick up` runs mends by itself, so nothing that others on this machine depend on is one."""
    broken = facts(
        swaps=("/dev/sda2",), huge_pages="always", merges_pages=True, data=place("ext4", "nodev"), tun=AWAY,
        limits=ProcessLimits(process_count=64),
    )  # fmt: skip
    found = host_findings(broken, boots=False)
    assert not any(result.mend or result.required for result in found)
    assert {result.name for result in found if result.advice} >= {"swap", "huge pages", "page merging", "tun device"}
