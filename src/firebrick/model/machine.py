"""A machine is what one runtime starts for one sandbox on one node: the thing behind the driver seam.

It knows nothing of teams, templates or timeouts. A machine may be warm: started before any sandbox owns it.
"""

from dataclasses import dataclass
from enum import StrEnum

from firebrick.model.ids import MachineId


class RuntimeName(StrEnum):
    FIRECRACKER = "firecracker"
    GVISOR = "gvisor"
    CONTAINER = "container"
    SIM = "sim"

    @property
    def isolation(self) -> "Isolation":
        return _ISOLATION[self]

    @property
    def strength(self) -> int:
        """Order for `auto`: the strongest that the doctor proved wins. 0 is never chosen by itself."""
        return _STRENGTH[self]


class Isolation(StrEnum):
    """What stands between the guest and the host's kernel."""

    HARDWARE_VM = "hardware_vm"
    USER_SPACE_KERNEL = "user_space_kernel"
    SHARED_KERNEL = "shared_kernel"
    NONE = "none"


_ISOLATION = {
    RuntimeName.FIRECRACKER: Isolation.HARDWARE_VM,
    RuntimeName.GVISOR: Isolation.USER_SPACE_KERNEL,
    RuntimeName.CONTAINER: Isolation.SHARED_KERNEL,
    RuntimeName.SIM: Isolation.NONE,
}
_STRENGTH = {
    RuntimeName.FIRECRACKER: 3,
    RuntimeName.GVISOR: 2,
    RuntimeName.CONTAINER: 1,
    RuntimeName.SIM: 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most a machine may use. All > 0. Enforced by the host, never by the guest alone."""

    millicpu: int
    memory_mib: int
    disk_mib: int
    process_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One reading. Counters grow from the machine's start; they restart at 0 with a new machine."""

    cpu_ns: int
    memory_bytes: int
    memory_peak_bytes: int
    disk_bytes: int
    process_count: int
    oom_kill_count: int


class ExitCause(StrEnum):
    """Why a machine ended, as the host saw it."""

    GUEST_EXIT = "guest_exit"
    OOM = "oom"
    DESTROYED = "destroyed"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineExit:
    """The end of a machine. `exit_code` is None where the runtime can no longer tell (after an adoption)."""

    machine_id: MachineId
    cause: ExitCause
    exit_code: int | None = None
    detail: str = ""
