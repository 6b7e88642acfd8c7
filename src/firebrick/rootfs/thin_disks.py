"""Disks as thin devices of device mapper, in a pool of ours: a clone is a snapshot of another.

    root/metadata, data     files behind the pool; `data` only where no block device was given for it
    root/devices/<number>   symbolic link to the device's node of this boot; none while it is not active
    root/sizes/<number>     its MiB, which the pool does not know
    root/ids/<number>       symbolic link to devices/<number>, which each image of the disk is another hard link of
    root/seeds/<mib>.img    images of empty disks

So the link count of `ids/<number>` tells how many images a disk has, in one place and at every moment: it is written
before there is anything in the pool, and goes when nothing is left there. With a count of one it is nobody's.

The pool must zero what it hands out: a block may have been another machine's. Where it is full, writes that need a new
block fail; whoever writes to what it has goes on.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from firebrick.linux import device_mapper
from firebrick.linux.device_mapper import SECTOR_BYTES, Target
from firebrick.linux.loop import attached, copy_data, discard
from firebrick.log import get_log
from firebrick.rootfs.base import RootfsFailed
from firebrick.rootfs.disks import CloneKind, FileDisks
from firebrick.rootfs.ext4 import copy_ext4, device_bytes, format_ext4, grow_ext4, is_as_large

log = get_log("rootfs")

_BLOCK_BYTES = 64 << 10
_METADATA_BYTES_PER_BLOCK = 128
"""Twice what one mapping takes."""
_LEAST_METADATA_BYTES, _MOST_METADATA_BYTES = 16 << 20, 15 << 30
_METADATA_RESERVE = 0.05
_MOST_NUMBER = (1 << 24) - 1
_BLANK_BYTES = 1 << 20
_MIB_SECTORS = (1 << 20) // SECTOR_BYTES
RELEASE_PATIENCE_S = 5.0
"""How long a device may stay busy after its last user: somebody who looks at every new device has it open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """`mode`: rw, ro, out_of_data_space, or Fail."""

    mode: str
    metadata_used: int = 0
    metadata_count: int = 0
    data_used: int = 0
    data_count: int = 0
    needs_check: bool = False

    @property
    def is_broken(self) -> bool:
        return self.mode in ("ro", "Fail") or self.needs_check

    @property
    def free_mib(self) -> int:
        if self.metadata_used > self.metadata_count * (1 - _METADATA_RESERVE):
            return 0
        return (self.data_count - self.data_used) * _BLOCK_BYTES >> 20


class ThinDisks:
    """See `Disks`. Images that are files, of a time when disks were cloned otherwise, are served as well.

    Args:
        root: ours alone, on the filesystem of the images, two directories above them as they are above its own; made
            if absent.
        instance: in the names of our devices.
        device: a block device for the pool's data, ours alone, blank at first; None: a sparse file.
    """

    def __init__(self, root: Path, *, instance: str, device: Path | None = None) -> None:
        self._root = root
        self._files = FileDisks(root / "seeds")
        self._prefix = f"firebrick-{instance}-"
        self._pool = f"{self._prefix}pool"
        self._pool_number = ""
        self._device = device
        self._next = 1
        self._lock = threading.Lock()
        self._one_formatter = threading.Lock()

    def open(self, images: Iterable[Path]) -> None:
        if not device_mapper.CONTROL.exists():
            raise RootfsFailed(
                "This kernel has no device mapper. Load it (`modprobe dm-thin-pool`), or set disk_clones to auto.",
                detail=str(device_mapper.CONTROL),
            )
        for name in ("devices", "sizes", "ids", "seeds"):
            (self._root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in self._device_names():
            # NOTE: a crash in the middle of a clone; whoever uses this disk waits.
            if (found := device_mapper.find(name)) is not None and found.is_live and found.is_suspended:
                device_mapper.resume(name)
        self._open_pool()
        self._next = max(self._numbers(), default=0) + 1
        # NOTE: links of an earlier boot may lead to another's device by now.
        for link in (self._root / "devices").iterdir():
            link.unlink()
        for number in {number for image in images if (number := self._number(image)) is not None}:
            self._activate(number)
        log.info("rootfs.disks", clones=CloneKind.DEVMAPPER, free_mib=self._status().free_mib)

    def make(self, image: Path, *, disk_mib: int) -> None:
        with self._one_formatter:
            seed = self._seed(disk_mib)
        self._snapshot(seed, image)

    def copy(self, source: Path, image: Path) -> None:
        number = self._number(source)
        if number is not None:
            self._snapshot(number, image)
            return
        with self._new(image, disk_mib=-(-source.stat().st_size >> 20)) as made:
            self._tell(f"create_thin {made}")
            node = self._activate(made)
            with source.open("rb") as reader, node.open("r+b", buffering=0) as writer:
                copy_data(reader.fileno(), writer.fileno())
                os.fsync(writer.fileno())

    def share(self, source: Path, image: Path) -> None:
        with self._lock:
            os.link(source, image, follow_symlinks=False)

    def grow(self, image: Path, *, disk_mib: int) -> None:
        number = self._number(image)
        if number is None:
            self._files.grow(image, disk_mib=disk_mib)
            return
        if is_as_large(image, disk_mib=disk_mib):
            return
        if disk_mib > self._size_mib(number):
            self._write_size(number, disk_mib)
            device_mapper.load(self._name(number), self._target(number))
            device_mapper.suspend(self._name(number))
            device_mapper.resume(self._name(number))
        grow_ext4(image.resolve(), disk_mib=disk_mib)

    @contextmanager
    def attached(self, image: Path) -> Iterator[Path]:
        if self._number(image) is None:
            with self._files.attached(image) as device:
                yield device
        else:
            yield image.resolve()

    def capture(self, image: Path, target: Path) -> None:
        if self._number(image) is None:
            self._files.capture(image, target)
        else:
            copy_ext4(image.resolve(), target)

    def flush(self, image: Path) -> None:
        # Of a device this commits the pool's metadata, too.
        self._files.flush(image)
        if self._number(image) is not None:
            for directory in (image.parent, self._root / "ids", self._root / "sizes"):
                self._files.flush(directory)

    def remove(self, image: Path) -> None:
        number = self._number(image)
        if number is None:
            self._files.remove(image)
            return
        with self._lock:
            if self._image_count(number) > 1:
                image.unlink()
                return
        # NOTE: the image goes after what it names, so that a failure can be repeated, and the id last of all: the
        # number must not be another disk's while an image names it.
        self._destroy(number)
        image.unlink()
        self._forget(number)

    def used_bytes(self, image: Path) -> int:
        """With what it shares with the empty disk it began as, which is less than 1 MiB."""
        number = self._number(image)
        if number is None:
            return self._files.used_bytes(image)
        return int(device_mapper.status(self._name(number)).split()[0]) * SECTOR_BYTES

    def free_mib(self) -> int | None:
        status = self._status()
        if status.is_broken:
            raise RootfsFailed(
                "The pool of the machines' disks is damaged and takes no more writes. End the sandboxes, stop the "
                "node, repair the pool's metadata with thin_repair, then start it again.",
                detail=f"{self._pool}: {status}",
            )
        return status.free_mib

    def sweep(self) -> None:
        for number in self._numbers():
            if self._image_count(number) == 0:
                self._destroy(number)
                self._forget(number)
                log.info("rootfs.thin_swept", number=number)
        known = set(self._numbers())
        for name in self._device_names():
            stray = _parse_number(name.removeprefix(self._prefix))
            if stray is not None and stray not in known:
                self._destroy(stray)
        for path in (self._root / "sizes").iterdir():
            if _parse_number(path.name) not in known:
                path.unlink()

    def close(self) -> bool:
        # All of them are looked at, whatever the first says.
        is_unused = all([self._let_go(number) for number in self._numbers()])
        if is_unused:
            _patiently(lambda: device_mapper.remove(self._pool))
        return is_unused

    def _seed(self, disk_mib: int) -> int:
        seed = self._root / "seeds" / f"{disk_mib}.img"
        number = self._number(seed) if seed.is_symlink() else None
        if number is not None:
            return number
        with self._new(seed, disk_mib=disk_mib) as made:
            self._tell(f"create_thin {made}")
            node = self._activate(made)
            format_ext4(node)
            self._files.flush(node)
            # What is not active can be snapshotted without holding up anybody.
            self._deactivate(made)
        return made

    def _snapshot(self, origin: int, image: Path) -> None:
        with self._new(image, disk_mib=self._size_mib(origin)) as made:
            is_active = device_mapper.find(self._name(origin)) is not None
            with ExitStack() as stack:
                if is_active:
                    device_mapper.suspend(self._name(origin))
                    stack.callback(device_mapper.resume, self._name(origin))
                self._tell(f"create_snap {made} {origin}")
            self._activate(made)

    @contextmanager
    def _new(self, image: Path, *, disk_mib: int) -> Iterator[int]:
        """A number for what the block makes in the pool; then `image` is its image. What fails leaves nothing."""
        number = self._take_number(disk_mib)
        try:
            yield number
            os.link(self._id(number), image, follow_symlinks=False)
        except BaseException:
            self._destroy(number)
            self._forget(number)
            raise

    def _take_number(self, disk_mib: int) -> int:
        with self._lock:
            while True:
                number, self._next = self._next, self._next % _MOST_NUMBER + 1
                try:
                    # Relative, so that the whole may be moved.
                    self._id(number).symlink_to(f"../../{self._root.name}/devices/{number}")
                except FileExistsError:
                    continue
                self._write_size(number, disk_mib)
                return number

    def _forget(self, number: int) -> None:
        (self._root / "sizes" / str(number)).unlink(missing_ok=True)
        self._id(number).unlink(missing_ok=True)

    def _destroy(self, number: int) -> None:
        """Nothing of it is in the kernel or the pool afterwards. Idempotent. Raises OSError: EBUSY."""
        found = device_mapper.find(self._name(number))
        if found is not None and found.is_live:
            # So that a pool in a file gives its room back to the host.
            with suppress(OSError):
                discard(found.node, device_bytes(found.node))
        self._deactivate(number)
        try:
            self._tell(f"delete {number}")
        except OSError as exc:
            if exc.errno != errno.ENODATA:
                raise

    def _activate(self, number: int) -> Path:
        name = self._name(number)
        try:
            found = device_mapper.create(name, self._target(number))
        except OSError as exc:
            # Usually there is none, and each question more would be a tenth of a clone.
            if exc.errno != errno.EBUSY or (there := device_mapper.find(name)) is None:
                raise
            found = there
            if not there.is_live:
                device_mapper.remove(name)
                found = device_mapper.create(name, self._target(number))
        link = self._root / "devices" / str(number)
        try:
            link.symlink_to(found.node)
        except FileExistsError:
            link.unlink()
            link.symlink_to(found.node)
        return found.node

    def _deactivate(self, number: int) -> None:
        _patiently(lambda: device_mapper.remove(self._name(number)))
        (self._root / "devices" / str(number)).unlink(missing_ok=True)

    def _let_go(self, number: int) -> bool:
        """False: somebody uses it."""
        found = device_mapper.find(self._name(number))
        if found is not None and found.open_count:
            return False
        self._deactivate(number)
        return True

    def _target(self, number: int) -> Target:
        return Target(
            kind="thin",
            sector_count=self._size_mib(number) * _MIB_SECTORS,
            parameters=f"{self._pool_number} {number}",
        )

    def _tell(self, text: str) -> None:
        device_mapper.message(self._pool, text)

    def _status(self) -> PoolStatus:
        return parse_pool_status(device_mapper.status(self._pool))

    def _open_pool(self) -> None:
        found = device_mapper.find(self._pool)
        if found is not None and found.is_live:
            self._pool_number = found.major_minor
            return
        if found is not None:
            device_mapper.remove(self._pool)
        with ExitStack() as undo, ExitStack() as stack:
            data = self._device or stack.enter_context(attached(self._data_file()))
            data_bytes = device_bytes(data) // _BLOCK_BYTES * _BLOCK_BYTES
            metadata = self._root / "metadata"
            if not metadata.exists():
                _check_blank(data)
                undo.callback(metadata.unlink, missing_ok=True)
                _make_sparse(metadata, metadata_bytes(data_bytes))
            target = Target(
                kind="thin-pool",
                sector_count=data_bytes // SECTOR_BYTES,
                parameters=f"{stack.enter_context(attached(metadata))} {data} {_BLOCK_BYTES // SECTOR_BYTES} 0 "
                "1 error_if_no_space",
            )
            self._pool_number = device_mapper.create(self._pool, target).major_minor
            undo.pop_all()

    def _data_file(self) -> Path:
        """As large as the filesystem it lies on, whose room is the bound then."""
        file = self._root / "data"
        if not file.exists():
            host = os.statvfs(self._root)
            _make_sparse(file, host.f_blocks * host.f_frsize)
        return file

    def _number(self, image: Path) -> int | None:
        """None where the image is a file, or is not there."""
        try:
            target = image.readlink()
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise
        return _parse_number(target.name)

    def _device_names(self) -> list[str]:
        return [name for name in device_mapper.device_names() if name.startswith(self._prefix)]

    def _numbers(self) -> list[int]:
        found = (_parse_number(path.name) for path in (self._root / "ids").iterdir())
        return [number for number in found if number is not None]

    def _image_count(self, number: int) -> int:
        try:
            return self._id(number).lstat().st_nlink - 1
        except FileNotFoundError:
            return 0

    def _size_mib(self, number: int) -> int:
        return int((self._root / "sizes" / str(number)).read_text())

    def _write_size(self, number: int, disk_mib: int) -> None:
        file = self._root / "sizes" / str(number)
        draft = file.with_suffix(".new")
        draft.write_text(str(disk_mib))
        draft.rename(file)

    def _id(self, number: int) -> Path:
        return self._root / "ids" / str(number)

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number}"


def parse_pool_status(text: str) -> PoolStatus:
    """What the kernel says of a pool: `Fail`, or number of its transaction, used/all blocks of metadata and data, held
    root, mode, options, and whether it must be checked."""
    words = text.split()
    if len(words) < 5:
        return PoolStatus(mode="Fail")
    metadata, data = words[1].split("/"), words[2].split("/")
    return PoolStatus(
        mode=words[4],
        metadata_used=int(metadata[0]),
        metadata_count=int(metadata[1]),
        data_used=int(data[0]),
        data_count=int(data[1]),
        needs_check="needs_check" in words,
    )


def metadata_bytes(data_bytes: int) -> int:
    """Room for what the pool keeps about so much data."""
    wanted = data_bytes // _BLOCK_BYTES * _METADATA_BYTES_PER_BLOCK
    return min(max(wanted >> 20 << 20, _LEAST_METADATA_BYTES), _MOST_METADATA_BYTES)


def _check_blank(device: Path) -> None:
    if not stat.S_ISBLK(device.stat().st_mode):
        raise RootfsFailed(f"{device} is no block device, so the pool of the machines' disks cannot be made on it.")
    with device.open("rb") as file:
        if any(file.read(_BLANK_BYTES)):
            raise RootfsFailed(
                f"{device} is not blank, so the pool of the machines' disks is not made on it. If nothing on it is "
                f"needed, run `blkdiscard -z {device}`; then start again."
            )


def _make_sparse(file: Path, size_bytes: int) -> None:
    # NOTE: its size before its name, or a crash between would leave a pool of no size.
    draft = file.with_suffix(".new")
    with draft.open("wb") as new:
        new.truncate(size_bytes)
    draft.rename(file)


def _parse_number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _patiently(remove: Callable[[], None]) -> None:
    """A device that is not there is fine. Raises OSError: EBUSY when it stays busy."""
    deadline = time.monotonic() + RELEASE_PATIENCE_S
    pause_s = 0.002
    while True:
        try:
            remove()
            return
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            if exc.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.1)
