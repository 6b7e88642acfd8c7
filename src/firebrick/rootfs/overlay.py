"""Rootfs by overlayfs: one shared EROFS mount per image, one bounded ext4 upper per machine.

    root/images/<key>/image     the image, mounted read-only once
    root/machines/<machine>/    disk.img, disk/ (its mount), rootfs/ (the merged tree)
    root/pool/, making/         uppers made ahead, and in the making
    root/seeds/, thin/          of the driver of disks: what they are cloned from

`prepare` takes an upper from the pool, renames its directory and mounts once: about a millisecond. All mounts
live in the host's namespace and survive our process; `recover` reads them back from mountinfo.

Runtimes that run a machine in a user namespace need its files owned by shifted ids. overlayfs itself cannot be
idmapped (EINVAL, seen on 6.18), but its lower layer can (EROFS from 5.19 on): with `id_shift` the merged tree
has inside's root as `id_shift` on the host, without a chown of a single file.
"""

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from firebrick.linux.idmap import ShiftedNamespaces, filesystem_user
from firebrick.linux.loop import attached
from firebrick.linux.mount import (
    MS_NODEV,
    MS_RDONLY,
    bind,
    bind_idmapped,
    make_shared,
    mount,
    mounts_below,
    option_path,
)
from firebrick.linux.process import CommandFailed
from firebrick.log import get_log
from firebrick.model.errors import DiskFull
from firebrick.model.ids import MachineId, is_machine_id
from firebrick.rootfs.base import Rootfs, RootfsFailed
from firebrick.rootfs.disks import Disks, FileDisks
from firebrick.rootfs.ext4 import check_ext4
from firebrick.rootfs.upper import (
    Fill,
    Upper,
    destroy_upper,
    flush_upper,
    make_upper,
    unmount_patiently,
    unmount_upper,
)

log = get_log("rootfs")

# index=off: hard links of the lower need not survive a copy-up, and an index ties an upper to one lower's handles.
# metacopy=off: an upper file is then always whole, so an upper can be read or saved without its lower.
# redirect_dir=on: rename(2) of a directory of the image works; npm and pip do that and fail on EXDEV.
# xino=auto: st_dev and st_ino stay the same over a copy-up; tar, rsync and `tail -F` look at them.
# volatile: no sync of a guest's reaches the host's disk, where one machine's fsync storm would stall its neighbours.
# What a pause or a snapshot promises to be safe is flushed by us, once, while the machine stands still.
_OVERLAY_OPTIONS = "index=off,metacopy=off,redirect_dir=on,xino=auto,volatile"

_FLUSH_MIB = 64
"""Free space below which a disk is not brought to the host's: what waits in memory for that is rarely more."""

_REFILL_RETRY_S = 5.0
_P = ParamSpec("_P")
_R = TypeVar("_R")


class OverlayRootfs:
    """See `RootfsDriver`. Holds no state that the directory and mountinfo do not hold too.

    Args:
        root: ours alone, on a filesystem with sparse files; made if absent.
        disks: how what a machine writes is kept and cloned; None: as sparse files.
        instance: shown as the source of every overlay mount, for people who read mountinfo.
        pool_size: uppers kept mounted ahead; each costs 230 KiB of disk and a loop device. As many that are not
            mounted, from the first machine on that has a kernel of its own.
        disk_mib: size of those uppers; `prepare` of another size makes its own, in about 5 ms.
        reserve_mib: `prepare` refuses below this much free space, because a host that is full turns every
            machine's writes into I/O errors.
    """

    def __init__(
        self,
        *,
        root: Path,
        instance: str,
        disks: Disks | None = None,
        pool_size: int = 4,
        disk_mib: int = 10240,
        reserve_mib: int = 512,
    ) -> None:
        self._root = root
        self._disks = disks or FileDisks(root / "seeds")
        self._source = f"firebrick-{instance}"
        self._pool_size = pool_size
        self._disk_mib = disk_mib
        self._namespaces = ShiftedNamespaces()
        self._reserve_mib = reserve_mib
        self._ready: list[Upper] = []
        self._ready_files: list[Upper] = []
        self._file_count = 0
        self._taken = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self._is_closed = False
        self._image_lock = asyncio.Lock()
        # Threads of our own: a host disk that hangs must not eat the threads that others share.
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="rootfs")

    async def open(self) -> None:
        await self._blocking(self._claim_root)
        if self._pool_size:
            self._filler = asyncio.create_task(self._keep_filled(), name="rootfs-pool")

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
        with _Translate(f"prepare the disk of machine {machine_id}"):
            await self._blocking(self._check_room)
            if not is_mounted:
                is_new = disk is None and disk_mib == self._disk_mib
                return await self._prepare_file(machine_id, image, self._fill(disk_mib, disk, shares), is_new)
            lower = await self._lower(image)
            is_new = disk is None and disk_mib == self._disk_mib
            ready = self._ready.pop() if self._ready and is_new else None
            # NOTE: one of a used disk is of no size that the pool knows: after a crash it is not taken for a new one.
            make = partial(self._make, "used" if disk else str(disk_mib), self._fill(disk_mib, disk, shares))
            work = asyncio.ensure_future(self._blocking(self._clone, machine_id, lower, ready, make, id_shift))
            try:
                path = await asyncio.shield(work)
            except asyncio.CancelledError:
                # The thread cannot be stopped half-way: let it end, then take back what it made.
                await asyncio.wait([work])
                await self.remove(machine_id)
                raise
            finally:
                # Afterwards: the next one's making would keep this one's caller waiting.
                self._taken.set()
        inside = self._machine(machine_id).disk
        return Rootfs(machine_id=machine_id, path=path, id_shift=id_shift, image=image, disk=inside)

    async def _prepare_file(self, machine_id: MachineId, image: Path, fill: Fill, is_new: bool) -> Rootfs:
        ready = self._ready_files.pop() if self._ready_files and is_new else None
        self._file_count = self._pool_size
        work = asyncio.ensure_future(self._blocking(self._clone_file, machine_id, ready, fill))
        try:
            upper = await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            await self.remove(machine_id)
            raise
        finally:
            self._taken.set()
        return Rootfs(machine_id=machine_id, path=upper.merged, image=image, disk_file=upper.image)

    async def remove(self, machine_id: MachineId) -> None:
        with _Translate(f"remove the disk of machine {machine_id}"):
            await self._blocking(destroy_upper, self._disks, self._machine(machine_id))

    async def flush(self, machine_id: MachineId) -> None:
        with _Translate(f"flush the disk of machine {machine_id}"):
            # NOTE: looked at before. What the kernel tries to write and finds no room for, it forgets.
            await self._blocking(self._check_room, _FLUSH_MIB)
            await self._blocking(flush_upper, self._disks, self._machine(machine_id))

    async def keep(self, machine_id: MachineId) -> None:
        with _Translate(f"keep the disk of machine {machine_id}"):
            await self._blocking(unmount_upper, self._disks, self._machine(machine_id))

    def disk(self, machine_id: MachineId) -> Path:
        return self._machine(machine_id).image

    def stamp(self, machine_id: MachineId) -> str:
        try:
            found = self.disk(machine_id).stat()
        except OSError:
            return ""
        # Of a block device the time is its name's.
        if not stat.S_ISREG(found.st_mode):
            return ""
        return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}"

    async def capture(self, machine_id: MachineId, target: Path) -> None:
        with _Translate(f"copy the disk of machine {machine_id}"):
            await self._blocking(self._check_room)
            await self._blocking(self._capture, self._machine(machine_id), target)

    async def mend(self, disk: Path) -> None:
        with _Translate("check a copied disk"):
            await self._blocking(check_ext4, disk)

    async def usage_bytes(self, machine_id: MachineId) -> int:
        try:
            return await self._blocking(self._disks.used_bytes, self._machine(machine_id).image)
        except OSError:
            return 0

    async def recover(self, keep: frozenset[MachineId], kept: frozenset[MachineId] = frozenset()) -> None:
        with _Translate("recover the disks of an earlier run"):
            await self._blocking(self._claim_root)
            await self._blocking(self._disks.open, self._images_of_machines())
            for machine_id in await self._blocking(self._strangers, keep):
                if machine_id in kept:
                    await self.keep(machine_id)
                else:
                    await self._remove_orphan(machine_id)
            self._ready = await self._blocking(self._sort_pool)
            await self._blocking(self._disks.sweep)

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._filler is not None:
            self._filler.cancel()
            await asyncio.wait([self._filler])
            self._filler = None
        unused, self._ready, self._ready_files = self._ready + self._ready_files, [], []
        with _Translate("take down unused disks"):
            for upper in unused:
                await self._blocking(destroy_upper, self._disks, upper)
            await self._blocking(self._release_unused)
        self._namespaces.close()
        self._threads.shutdown(wait=True)

    async def _remove_orphan(self, machine_id: MachineId) -> None:
        try:
            await self.remove(machine_id)
        except RootfsFailed as exc:
            # One disk that somebody holds must not keep the node down; the next recovery tries again.
            log.warning("rootfs.orphan_stays", machine_id=machine_id, error=exc.message, detail=exc.detail)
        else:
            log.info("rootfs.orphan_removed", machine_id=machine_id)

    async def _keep_filled(self) -> None:
        while True:
            self._taken.clear()
            try:
                while len(self._ready) < self._pool_size:
                    make = partial(self._make, str(self._disk_mib), self._fill(self._disk_mib))
                    await self._add_ready(self._ready, make)
                while len(self._ready_files) < self._file_count:
                    await self._add_ready(self._ready_files, self._make_file)
            except (OSError, CommandFailed) as exc:
                # A full or failing disk: `prepare` reports it to its caller; here we only try again later.
                log.warning("rootfs.pool_not_filled", error=str(exc))
                await asyncio.sleep(_REFILL_RETRY_S)
                continue
            await self._taken.wait()

    async def _add_ready(self, ready: list[Upper], make: Callable[[], Upper]) -> None:
        work = asyncio.ensure_future(self._blocking(make))
        try:
            ready.append(await asyncio.shield(work))
        except asyncio.CancelledError:
            await asyncio.wait([work])
            if not work.exception():
                ready.append(work.result())
            raise

    async def _lower(self, image: Path) -> Path:
        async with self._image_lock:
            return await self._blocking(self._mount_image, image)

    def _machine(self, machine_id: MachineId) -> Upper:
        return Upper(directory=self._root / "machines" / machine_id)

    def _clone(
        self, machine_id: MachineId, lower: Path, ready: Upper | None, make: Callable[[], Upper], id_shift: int
    ) -> Path:
        target = self._machine(machine_id)
        if target.directory.exists():
            if ready is not None:
                self._ready.append(ready)
            raise RootfsFailed(f"Machine {machine_id} already has a disk; remove it before preparing another.")
        upper = ready if ready is not None else make()
        try:
            upper = upper.moved(target.directory)
            if id_shift:
                self._mount_shifted(upper, lower, id_shift)
            else:
                self._mount_merged(upper, lower)
        except BaseException:
            destroy_upper(self._disks, upper)
            raise
        return upper.merged

    def _clone_file(self, machine_id: MachineId, ready: Upper | None, fill: Fill) -> Upper:
        target = self._machine(machine_id)
        if target.directory.exists():
            if ready is not None:
                self._ready_files.append(ready)
            raise RootfsFailed(f"Machine {machine_id} already has a disk; remove it before preparing another.")
        if ready is not None:
            return ready.moved(target.directory)
        making = self._root / "making" / f"file-{secrets.token_hex(6)}"
        return make_upper(self._disks, making, fill, is_mounted=False).moved(target.directory)

    def _make_file(self) -> Upper:
        # NOTE: of no size that the pool knows: what a power cut left of it is not taken for a new one.
        name = f"file-{secrets.token_hex(6)}"
        made = make_upper(self._disks, self._root / "making" / name, self._fill(self._disk_mib), is_mounted=False)
        return made.moved(self._root / "pool" / name)

    def _fill(self, disk_mib: int, disk: Path | None = None, shares: bool = False) -> Fill:
        if disk is None:
            return partial(self._disks.make, disk_mib=disk_mib)

        def fill(image: Path) -> None:
            (self._disks.share if shares else self._disks.copy)(disk, image)
            self._disks.grow(image, disk_mib=disk_mib)

        return fill

    def _mount_merged(self, upper: Upper, lower: Path) -> None:
        options = f"lowerdir={option_path(lower)},upperdir={option_path(upper.upper)}"
        options += f",workdir={option_path(upper.work)},{_OVERLAY_OPTIONS}"
        mount(self._source, upper.merged, "overlay", flags=MS_NODEV, options=options)

    def _mount_shifted(self, upper: Upper, lower: Path, id_shift: int) -> None:
        # The merged mount keeps its own copy of the shifted view, so the view needs no place of its own: it
        # lies where the merged tree will be, which also leaves nothing extra to undo.
        namespace = self._namespaces.descriptor(id_shift)
        bind_idmapped(lower, upper.merged, user_namespace=namespace)
        # The upper likewise: on the disk itself owners are those of inside, so that a later machine may have another
        # shift.
        bind_idmapped(upper.disk, upper.disk, user_namespace=namespace)
        with filesystem_user(id_shift):
            self._mount_merged(upper, upper.merged)

    def _make(self, prefix: str, fill: Fill) -> Upper:
        name = f"{prefix}-{secrets.token_hex(6)}"
        return make_upper(self._disks, self._root / "making" / name, fill).moved(self._root / "pool" / name)

    def _capture(self, upper: Upper, target: Path) -> None:
        if os.path.ismount(upper.disk) or not upper.has_mounts:
            flush_upper(self._disks, upper)
        self._disks.capture(upper.image, target)

    def _images_of_machines(self) -> list[Path]:
        return [Upper(directory=directory).image for directory in (self._root / "machines").iterdir()]

    def _mount_image(self, image: Path) -> Path:
        key = hashlib.sha256(os.fsencode(image)).hexdigest()[:16]
        plain = self._root / "images" / key / "image"
        if not os.path.ismount(plain):
            plain.mkdir(parents=True, exist_ok=True)
            _mount_erofs(image, plain)
        return plain

    def _check_room(self, wanted_mib: int | None = None) -> None:
        wanted_mib = self._reserve_mib if wanted_mib is None else min(wanted_mib, self._reserve_mib)
        free = os.statvfs(self._root)
        free_mib = free.f_bavail * free.f_frsize >> 20
        if free_mib < wanted_mib:
            raise DiskFull(
                f"The node's disk is full: {free_mib} MiB free where {wanted_mib} MiB must stay free. "
                "Free space there, or move data_dir to a larger disk; then try again.",
                detail=str(self._root),
            )
        pool_mib = self._disks.free_mib()
        if pool_mib is not None and pool_mib < wanted_mib:
            raise DiskFull(
                f"The pool of the node's disks is full: {pool_mib} MiB free where {wanted_mib} MiB must stay free. "
                "End sandboxes, delete paused ones, or enlarge the device of disk_pool; then try again.",
            )

    def _claim_root(self) -> None:
        for name in ("images", "machines", "pool", "making", "seeds"):
            (self._root / name).mkdir(parents=True, exist_ok=True)
        own = [entry for entry in mounts_below(self._root) if entry.target == self._root]
        if not own:
            bind(self._root, self._root)
        # Shared, whatever the host's root is: a namespace that copied our mounts then lets go of them when we
        # unmount. A stray copy would hold the image's loop device and its disk space.
        if not any(entry.is_shared for entry in own):
            make_shared(self._root)

    def _strangers(self, keep: frozenset[MachineId]) -> list[MachineId]:
        mounted = {entry.target for entry in mounts_below(self._root)}
        found = []
        for directory in (self._root / "machines").iterdir():
            machine_id = MachineId(directory.name)
            if not is_machine_id(machine_id):
                continue
            lost_mounts = Upper(directory=directory).has_mounts and directory / "rootfs" not in mounted
            if machine_id not in keep or lost_mounts:
                found.append(machine_id)
        return found

    def _sort_pool(self) -> list[Upper]:
        for directory in (self._root / "making").iterdir():
            self._destroy_leftover(Upper(directory=directory))
        adopted: list[Upper] = []
        for directory in (self._root / "pool").iterdir():
            upper = Upper(directory=directory)
            fits = directory.name.startswith(f"{self._disk_mib}-") and upper.is_pristine()
            if fits and len(adopted) < self._pool_size:
                adopted.append(upper)
            else:
                self._destroy_leftover(upper)
        return adopted

    def _destroy_leftover(self, upper: Upper) -> None:
        try:
            destroy_upper(self._disks, upper)
        except OSError as exc:
            log.warning("rootfs.leftover_stays", directory=str(upper.directory), error=str(exc))

    def _release_unused(self) -> None:
        # A machine of which only the disk is kept has no mount and needs no image.
        if not self._disks.close() or mounts_below(self._root / "machines"):
            return
        for target in sorted((self._root / "images").glob("*/*"), reverse=True):
            unmount_patiently(target)
        shutil.rmtree(self._root / "images")
        # Busy for a moment while another process copies the mount table: a runtime that is being started does.
        unmount_patiently(self._root)

    async def _blocking(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))


class _Translate:
    """Turn the kernel's errors into RootfsFailed that says what was being done."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, OSError):
            raise RootfsFailed(f"Cannot {self._doing}: {exc.strerror}.", detail=str(exc)) from exc
        if isinstance(exc, CommandFailed):
            raise RootfsFailed(f"Cannot {self._doing}: a tool of the host failed.", detail=str(exc)) from exc


def _mount_erofs(image: Path, target: Path) -> None:
    # From 6.12 on the kernel mounts the file itself; before (or when built without) it asks for a block device.
    try:
        mount(image, target, "erofs", flags=MS_RDONLY | MS_NODEV)
    except OSError as exc:
        if exc.errno != errno.ENOTBLK:
            raise
        with attached(image, read_only=True) as device:
            mount(device, target, "erofs", flags=MS_RDONLY | MS_NODEV)
