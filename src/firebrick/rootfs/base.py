"""The rootfs seam: from a template's read-only image to a writable tree of one machine, in under 10 ms.

    image (EROFS, shared, mounted once) ── prepare ──▶ rootfs (image + own upper) ── remove ──▶ nothing
                                              ▲                  └── keep ──▶ disk file ── remove ──▶ nothing
                                              └──── from a disk file: a kept one, or one that `capture` wrote

What a machine wrote is one disk, whole without the machine, with owners as they were inside: it fits any id shift.

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

    Where it was prepared for a kernel of the machine's own, `disk_file` is all there is beside `image`: a filesystem in
    a file or a block device, with the upper in its directory `upper`. It is not mounted; `path` and `disk` are not
    there.
    """

    machine_id: MachineId
    path: Path
    id_shift: int = 0
    image: Path | None = None
    disk: Path | None = None
    disk_file: Path | None = None


class RootfsDriver(Protocol):
    async def open(self) -> None:
        """Make the pool of uppers ready, in the background. Called once, after `recover`."""
        ...

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
        """Clone `image` for one machine. Raises RootfsFailed; then nothing is left. O(1), no copying.

        With `disk` the machine begins with what that disk holds: a copy of its data, or with `shares` the disk
        itself, under a second name, which is O(1); then its former machine must be kept and stay so. Where that is
        smaller than `disk_mib` it grows, and its filesystem with it; it never shrinks.
        `id_shift` is for runtimes that put a machine into a user namespace: owner n of the image is then
        n + id_shift on the host, for ids 0 to 65535. 0 leaves owners as they are.
        Not `is_mounted`: for a machine with a kernel of its own, see `Rootfs.disk_file`.
        """
        ...

    async def remove(self, machine_id: MachineId) -> None:
        """Unmount and delete what the machine wrote. Idempotent. The machine must be destroyed before."""
        ...

    async def flush(self, machine_id: MachineId) -> None:
        """Bring what the machine has written to the host's disk. It should stand still. Raises RootfsFailed."""
        ...

    async def keep(self, machine_id: MachineId) -> None:
        """Unmount, and keep what the machine wrote, flushed. Idempotent. The machine must be destroyed before.
        Raises RootfsFailed."""
        ...

    def disk(self, machine_id: MachineId) -> Path:
        """What a machine wrote, while it is prepared or kept: a file or block device for `prepare` and `mend`."""
        ...

    def stamp(self, machine_id: MachineId) -> str:
        """Of the disk of a machine with a kernel of its own, as long as it is prepared or kept: another one after each
        write to it, by whichever machine shares it. "": this driver cannot tell."""
        ...

    async def capture(self, machine_id: MachineId, target: Path) -> None:
        """Copy what the machine has written to a new file, flushed; O(data). While the machine runs it must stand
        still meanwhile. Raises RootfsFailed; then `target` is not there."""
        ...

    async def mend(self, disk: Path) -> None:
        """Make a disk file whole that was captured from a running machine, or whose host lost its power. Before
        anything else is done with it. Raises RootfsFailed."""
        ...

    async def usage_bytes(self, machine_id: MachineId) -> int:
        """Bytes the machine has written (allocated), 0 for an unknown machine."""
        ...

    async def recover(self, keep: frozenset[MachineId], kept: frozenset[MachineId] = frozenset()) -> None:
        """After a restart: keep the rootfs of these machines, and of `kept` ones the disk only; remove every other
        that bears our names."""
        ...

    async def close(self) -> None:
        """Remove unused uppers and unmount images that no machine uses. Rootfs in use stay."""
        ...
