"""The rootfs seam: from a template's read-only image to a writable tree of one machine, in under 10 ms.

    image (EROFS, shared, mounted once) ── prepare ──▶ rootfs (image + own upper) ── remove ──▶ nothing

The upper is bounded by `disk_mib`; what a machine writes beyond it fails inside with ENOSPC and touches
nobody else. Uppers may be made ahead. Everything is named by machine id, so `recover` knows whose it is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from firebrick.model.errors import Internal
from firebrick.model.ids import MachineId


class RootfsFailed(Internal):
    """Mounting, cloning or removing failed; the message names the machine and the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rootfs:
    """`path` is mounted and writable until `remove`. Inside's root is `id_shift` on the host, and so on.

    A runtime that reads `image` by itself writes to `disk` instead: a directory that is bounded alike, and goes
    with the machine's rootfs. None: this driver has no such place.
    """

    machine_id: MachineId
    path: Path
    id_shift: int = 0
    image: Path | None = None
    disk: Path | None = None


class RootfsDriver(Protocol):
    async def open(self) -> None:
        """Make the pool of uppers ready, in the background. Called once, after `recover`."""
        ...

    async def prepare(self, machine_id: MachineId, image: Path, *, disk_mib: int, id_shift: int = 0) -> Rootfs:
        """Clone `image` for one machine. Raises RootfsFailed; then nothing is left. O(1), no copying.

        `id_shift` is for runtimes that put a machine into a user namespace: owner n of the image is then
        n + id_shift on the host, for ids 0 to 65535. 0 leaves owners as they are.
        """
        ...

    async def remove(self, machine_id: MachineId) -> None:
        """Unmount and delete what the machine wrote. Idempotent. The machine must be destroyed before."""
        ...

    async def usage_bytes(self, machine_id: MachineId) -> int:
        """Bytes the machine has written (allocated), 0 for an unknown machine."""
        ...

    async def recover(self, keep: frozenset[MachineId]) -> None:
        """After a restart: keep the rootfs of these machines, remove every other that bears our names."""
        ...

    async def close(self) -> None:
        """Remove unused uppers and unmount images that no machine uses. Rootfs in use stay."""
        ...
