"""Guests in pages of 2 MiB: whether the host has set enough of them aside.

The monitor takes them when the guest touches them, and is killed by SIGBUS where there is none any more. So what was
promised to machines that run is counted, not what they have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firebrick.model.errors import NoCapacity
from firebrick.model.ids import MachineId

PAGE_MIB = 2
_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Of one machine: all that it may touch, and what it has touched."""

    promised_mib: int
    taken_mib: int


def shortage(*, wanted_mib: int, free_mib: int, claims: tuple[Claim, ...]) -> int:
    """How many MiB of pages are missing for one machine more; 0: there are enough."""
    promised_mib = sum(max(0, claim.promised_mib - claim.taken_mib) for claim in claims)
    return max(0, wanted_mib + promised_mib - free_mib)


class HugePages:
    """What is promised to the machines of one driver. Blocks for a moment: a few reads of /proc."""

    def __init__(self, pool: Path = _POOL) -> None:
        self._pool = pool
        self._promised_mib: dict[MachineId, int] = {}

    @property
    def machines(self) -> tuple[MachineId, ...]:
        """Those that pages were promised to."""
        return tuple(self._promised_mib)

    def promise(self, machine_id: MachineId, memory_mib: int, pids: Mapping[MachineId, int | None]) -> None:
        """Count a machine in, before it starts. Undo: `forget`. Args: pids: of machines that run.

        Raises: NoCapacity, with what to do: the host has set too few aside, or none.
        """
        claims = tuple(
            Claim(promised_mib=promised_mib, taken_mib=taken_mib(pids.get(other)))
            for other, promised_mib in self._promised_mib.items()
            if other != machine_id
        )
        total, free = self._read("nr_hugepages"), self._read("free_hugepages")
        missing_mib = shortage(wanted_mib=memory_mib, free_mib=free * PAGE_MIB, claims=claims)
        if missing_mib:
            count = total + -(-missing_mib // PAGE_MIB)
            raise NoCapacity(
                f"This machine's {memory_mib} MiB do not fit into the huge pages of this node "
                f"({free * PAGE_MIB} of {total * PAGE_MIB} MiB free).",
                detail=f"reserve more: sysctl -w vm.nr_hugepages={count}; or set firecracker_huge_pages to off",
            )
        self._promised_mib[machine_id] = memory_mib

    def remember(self, machine_id: MachineId, memory_mib: int) -> None:
        """Count in one that runs already."""
        self._promised_mib[machine_id] = memory_mib

    def forget(self, machine_id: MachineId) -> None:
        """Idempotent."""
        self._promised_mib.pop(machine_id, None)

    def _read(self, name: str) -> int:
        try:
            return int((self._pool / name).read_text())
        except (OSError, ValueError):
            # A kernel without them.
            return 0


def taken_mib(pid: int | None) -> int:
    """What a monitor has of them; 0: it is gone, or has not started."""
    if pid is None:
        return 0
    try:
        words = Path(f"/proc/{pid}/status").read_text().split()
        return int(words[words.index("HugetlbPages:") + 1]) >> 10
    except (OSError, ValueError):
        return 0
