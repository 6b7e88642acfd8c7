"""What kind of virtual machines this machine can run, and what to do where it runs none. Pure.

A device file proves nothing and neither do flags: what counts is whether a guest has booted. The facts say why it did,
or did not:

    processor without a hypervisor + kvm_intel or kvm_amd        bare metal
    a guest itself                 + kvm_intel or kvm_amd        nested; emulated if its processor is a program
    kvm_pvm, or /dev/kvm without either                          page tables only: ordinary guests do not boot
"""

from dataclasses import dataclass
from enum import StrEnum

from firebrick.doctor.host_facts import HostFacts
from firebrick.doctor.result import ProbeResult, ProbeStatus

NAME = "virtualisation"
_DOCS = "docs/compatibility/firecracker.md"
_MODULE = {"vmx": "kvm_intel", "svm": "kvm_amd"}
_PAGING = {"kvm_intel": "ept", "kvm_amd": "npt"}


class Virtualisation(StrEnum):
    BARE_METAL = "bare metal"
    NESTED = "nested"
    EMULATED = "nested in an emulated machine"
    PAGE_TABLE = "page-table-virtualised KVM"
    NOT_LOADED = "the processor can, KVM is not loaded"
    NOT_NESTED = "a virtual machine whose host does not nest"
    SWITCHED_OFF = "none: off in the firmware, or not in this processor"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Advice:
    why: str
    commands: tuple[tuple[str, ...], ...] = ()


def kind_of(facts: HostFacts) -> Virtualisation:
    module = next((name for name in _PAGING if name in facts.kvm_parameters), "")
    if module and not facts.cpu.is_guest:
        return Virtualisation.BARE_METAL
    if module and _is_emulated(facts):
        return Virtualisation.EMULATED
    if module:
        return Virtualisation.NESTED
    if "kvm_pvm" in facts.modules.present or (facts.kvm.opens and not facts.cpu.extension):
        return Virtualisation.PAGE_TABLE
    if facts.cpu.extension:
        return Virtualisation.NOT_LOADED
    return Virtualisation.NOT_NESTED if facts.cpu.is_guest else Virtualisation.SWITCHED_OFF


def virtualisation_finding(facts: HostFacts, *, boots: bool | None) -> ProbeResult:
    """`boots`: whether a guest has booted here; None: nobody tried."""
    kind = kind_of(facts)
    summary = _summary(facts, kind)
    if boots:
        return _booted(facts, kind, summary)
    advice = _advice(facts, kind)
    if boots is None:
        return ProbeResult(
            name=NAME, status=ProbeStatus.ABSENT, summary=f"{summary}; no guest was booted", why=advice.why,
            advice=advice.commands,
        )  # fmt: skip
    return ProbeResult(
        name=NAME, status=ProbeStatus.WARN, summary=f"{summary}; no guest boots", why=advice.why,
        advice=advice.commands,
    )  # fmt: skip


def _booted(facts: HostFacts, kind: Virtualisation, summary: str) -> ProbeResult:
    summary = f"{summary}; a guest boots"
    if kind is Virtualisation.EMULATED:
        return ProbeResult(
            name=NAME, status=ProbeStatus.WARN, summary=summary,
            why="The machine's processor is a program: everything takes 10 to 30 times longer. Set patience.",
            advice=(("export", "FIREBRICK_PATIENCE=10"),),
        )  # fmt: skip
    if _has_shadow_paging(facts):
        return ProbeResult(
            name=NAME, status=ProbeStatus.WARN, summary=summary,
            why="Without nested page tables each change of a guest's page tables leaves the guest: it is slow.",
        )  # fmt: skip
    return ProbeResult(name=NAME, status=ProbeStatus.OK, summary=summary)


def _advice(facts: HostFacts, kind: Virtualisation) -> _Advice:
    if facts.kvm.exists and facts.kvm.error:
        return _Advice(why="/dev/kvm cannot be opened: see `kvm device`.")
    match kind:
        case Virtualisation.BARE_METAL:
            return _Advice(
                why="The kernel's log says what KVM missed; another hypervisor may hold the processor.",
                commands=(("dmesg",),),
            )
        case Virtualisation.NESTED | Virtualisation.EMULATED:
            return _Advice(
                why="The machine's own host nests badly or slowly. Give it the host's own kind of processor "
                f"(`host-passthrough`, `-cpu host`) and a newer kernel, or more patience: see {_DOCS}.",
                commands=(("dmesg",), ("export", "FIREBRICK_PATIENCE=10")),
            )
        case Virtualisation.PAGE_TABLE:
            return _Advice(
                why="KVM without the processor's help runs only kernels that were built for it; others are emulated "
                "instruction by instruction and never come up. Run gVisor here, or take a machine that nests.",
                commands=(("export", "FIREBRICK_RUNTIME=gvisor"),),
            )
        case Virtualisation.NOT_LOADED:
            module = _MODULE[facts.cpu.extension]
            return _Advice(
                why=f"Load {module}, now and at every start." + _container_hint(facts),
                commands=(("modprobe", module), ("sh", "-c", f"echo {module} > /etc/modules-load.d/firebrick.conf")),
            )
        case Virtualisation.NOT_NESTED:
            return _Advice(
                why="Switch nesting on where this machine is run (`nested=1` of its kvm_intel or kvm_amd, and a "
                "processor of kind `host`); in a cloud take a size that nests or one of bare metal."
                + _container_hint(facts)
            )
        case Virtualisation.SWITCHED_OFF:
            return _Advice(why="Switch virtualisation (VT-x, AMD-V, SVM mode) on in the firmware's setup.")


def _summary(facts: HostFacts, kind: Virtualisation) -> str:
    words = [str(kind)]
    module = next((name for name in _PAGING if name in facts.kvm_parameters), "")
    if module:
        words.append(f"{module} {'without' if _has_shadow_paging(facts) else 'with'} {_PAGING[module].upper()}")
        nests = facts.kvm_parameters[module].get("nested", "")
        words += ["guests may nest"] if nests in ("1", "Y") else []
    if facts.cpu.is_guest:
        under = facts.hypervisor or facts.product
        words += [f"itself under {under}"] if under else ["itself a guest"]
    return ", ".join(words)


def _is_emulated(facts: HostFacts) -> bool:
    """QEMU without KVM signs as TCG. Where the signature cannot be read, its firmware names QEMU and there is no clock
    of KVM's; a QEMU that was told to hide KVM looks the same."""
    if facts.hypervisor:
        return facts.hypervisor.startswith("TCG")
    return "QEMU" in facts.product and "kvm-clock" not in facts.clocks


def _has_shadow_paging(facts: HostFacts) -> bool:
    return any(facts.kvm_parameters.get(module, {}).get(name) in ("0", "N") for module, name in _PAGING.items())


def _container_hint(facts: HostFacts) -> str:
    return " In a container give it /dev/kvm (`--device /dev/kvm`)." if facts.container else ""
