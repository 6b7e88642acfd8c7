"""Rootfs in memory: the same promises, no kernel. For the sim runtime, tests and scale runs.

`disks` is the world that outlives a driver: hand the same dict to the next one to simulate a restart.
"""

from collections import deque
from errno import ENOSPC
from pathlib import Path

from firebrick.model.ids import MachineId
from firebrick.rootfs.base import Rootfs, RootfsFailed


class SimRootfs:
    """See `RootfsDriver`. `failures` makes the next calls fail: put "prepare" or "remove" into it; `full`: nothing more
    can be copied; `stamp_suffix`: change it, and all disks were written to."""

    def __init__(self, *, disks: dict[MachineId, int] | None = None) -> None:
        self.disks = {} if disks is None else disks
        self.failures: deque[str] = deque()
        self.full = False
        self.stamp_suffix = ""

    async def open(self) -> None:
        return None

    async def prepare(
        self,
        machine_id: MachineId,
        image: Path,
        *,
        disk_mib: int,
        id_shift: int = 0,
        disk: Path | None = None,
        shares: bool = False,
        is_mounted: bool = True,
    ) -> Rootfs:
        self._fail("prepare", machine_id)
        if machine_id in self.disks:
            raise RootfsFailed(f"Machine {machine_id} already has a disk; remove it before preparing another.")
        try:
            self.disks[machine_id] = 0 if disk is None else self._read(disk)
        except OSError as exc:
            raise RootfsFailed(f"Cannot prepare the disk of machine {machine_id}: {exc}.") from exc
        path = Path("/sim/machines") / machine_id / "rootfs"
        return Rootfs(machine_id=machine_id, path=path, id_shift=id_shift)

    async def remove(self, machine_id: MachineId) -> None:
        self._fail("remove", machine_id)
        self.disks.pop(machine_id, None)

    async def flush(self, machine_id: MachineId) -> None:
        self._fail("flush", machine_id)

    async def keep(self, machine_id: MachineId) -> None:
        self._fail("keep", machine_id)

    def disk(self, machine_id: MachineId) -> Path:
        return Path("/sim/machines") / machine_id / "disk"

    def stamp(self, machine_id: MachineId) -> str:
        return f"{self.disks.get(machine_id)}{self.stamp_suffix}"

    async def capture(self, machine_id: MachineId, target: Path) -> None:
        self._fail("capture", machine_id)
        if self.full:
            raise RootfsFailed(f"Cannot copy the disk of machine {machine_id}: it is full.") from OSError(
                ENOSPC, "full"
            )
        target.write_text(str(self.disks[machine_id]))

    async def mend(self, disk: Path) -> None:
        return None

    def _read(self, disk: Path) -> int:
        former = MachineId(disk.parent.name)
        return self.disks[former] if former in self.disks else int(disk.read_text())

    async def usage_bytes(self, machine_id: MachineId) -> int:
        return self.disks.get(machine_id, 0)

    async def recover(self, keep: frozenset[MachineId], kept: frozenset[MachineId] = frozenset()) -> None:
        for machine_id in self.disks.keys() - keep - kept:
            del self.disks[machine_id]

    async def close(self) -> None:
        return None

    def _fail(self, step: str, machine_id: MachineId) -> None:
        if self.failures and self.failures[0] == step:
            self.failures.popleft()
            raise RootfsFailed(f"Cannot {step} the disk of machine {machine_id}: told to fail.")
