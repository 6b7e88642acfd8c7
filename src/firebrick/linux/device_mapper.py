"""Device mapper, by ioctl on its control node: block devices made of others, named by us, until they are removed.

A device outlives the process that made it and ends with the kernel. Each gets its node `/dev/dm-N` from the kernel
itself, so none of this waits for udev. Functions block and raise OSError with the device's name: ENXIO, there is none
of that name; EBUSY, it is in use or is there already.
"""

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

CONTROL = Path("/dev/mapper/control")
SECTOR_BYTES = 512

# struct dm_ioctl: version[3], size of all, start of data, target count, open count, flags, event, padding, device,
# name, uuid, padding.
_HEAD = struct.Struct("=3I 2I I i I I I Q 128s 129s 7x")
_TARGET = struct.Struct("=QQiI16s")
_VERSION = (4, 0, 0)
_LIST, _CREATE, _REMOVE, _SUSPEND, _STATUS, _LOAD, _TABLE_STATUS, _MESSAGE = 2, 3, 4, 6, 7, 9, 12, 14
_IOCTL = 3 << 30 | _HEAD.size << 16 | 0xFD << 8

_SUSPENDED = 1 << 1
_LIVE = 1 << 5
_BUFFER_FULL = 1 << 8
_NO_FLUSH = 1 << 11
_BUFFER_BYTES = 16 << 10
_MOST_BUFFER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a device is: all of it one target of one kind."""

    kind: str
    sector_count: int
    parameters: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedDevice:
    """A device that is there. Not `is_live`: it was never given anything to be. While it `is_suspended` whoever reads
    or writes it waits, without an end."""

    node: Path
    number: int
    open_count: int
    is_live: bool
    is_suspended: bool

    @property
    def major_minor(self) -> str:
        """As a table of another device names it."""
        return f"{os.major(self.number)}:{os.minor(self.number)}"


def create(name: str, target: Target) -> MappedDevice:
    """Make a device and let it live. Undo: `remove(name)`. Raises OSError; then this has made none."""
    made = _call(_CREATE, name)
    try:
        load(name, target)
        resume(name)
    except BaseException:
        remove(name)
        raise
    return MappedDevice(node=_node(made.device), number=made.device, open_count=0, is_live=True, is_suspended=False)


def remove(name: str) -> None:
    """Its data is not touched."""
    _call(_REMOVE, name)


def load(name: str, target: Target) -> None:
    """Give it something else to be from the next `resume` on."""
    parameters = target.parameters.encode() + b"\0"
    parameters += bytes(-len(parameters) % 8)
    length = _TARGET.size + len(parameters)
    row = _TARGET.pack(0, target.sector_count, 0, length, target.kind.encode())
    _call(_LOAD, name, row + parameters, target_count=1)


def suspend(name: str) -> None:
    """Wait for what is being written, a filesystem's own caches too, and let nothing more through. Undo: `resume`."""
    _call(_SUSPEND, name, flags=_SUSPENDED)


def resume(name: str) -> None:
    """Let it live, as what was loaded last."""
    _call(_SUSPEND, name)


def message(name: str, text: str) -> None:
    """Tell its target to do something; the words are the target's own."""
    _call(_MESSAGE, name, struct.pack("=Q", 0) + text.encode() + b"\0")


def status(name: str) -> str:
    """What its target says of itself, as far as it knows without writing anything; the words are the target's own."""
    answer = _call(_TABLE_STATUS, name, flags=_NO_FLUSH)
    return answer.data[_TARGET.size :].split(b"\0", 1)[0].decode()


def find(name: str) -> MappedDevice | None:
    """None when there is no device of that name."""
    try:
        answer = _call(_STATUS, name)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return None
        raise
    return MappedDevice(
        node=_node(answer.device),
        number=answer.device,
        open_count=answer.open_count,
        is_live=bool(answer.flags & _LIVE),
        is_suspended=bool(answer.flags & _SUSPENDED),
    )


def _node(number: int) -> Path:
    return Path(f"/dev/dm-{os.minor(number)}")


def device_names() -> list[str]:
    """Every device's name, whoever made it."""
    data, position = _call(_LIST, "").data, 0
    names: list[str] = []
    while data:
        device, step = struct.unpack_from("=QI", data, position)
        if device:
            names.append(data[position + 12 :].split(b"\0", 1)[0].decode(errors="replace"))
        if not step:
            break
        position += step
    return names


@dataclass(frozen=True, slots=True)
class _Answer:
    device: int
    open_count: int
    flags: int
    data: bytes


def _call(command: int, name: str, payload: bytes = b"", *, flags: int = 0, target_count: int = 0) -> _Answer:
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = max(_BUFFER_BYTES, _HEAD.size + len(payload))
        while True:
            buffer = bytearray(size)
            _HEAD.pack_into(
                buffer, 0, *_VERSION, size, _HEAD.size, target_count, 0, flags, 0, 0, 0, name.encode(), b""
            )  # fmt: skip
            buffer[_HEAD.size : _HEAD.size + len(payload)] = payload
            try:
                fcntl.ioctl(control, _IOCTL | command, buffer)
            except OSError as exc:
                raise OSError(exc.errno, exc.strerror, name) from exc
            answer = _HEAD.unpack_from(buffer)
            if not answer[7] & _BUFFER_FULL or size >= _MOST_BUFFER_BYTES:
                break
            size *= 4
    finally:
        os.close(control)
    return _Answer(device=answer[10], open_count=answer[6], flags=answer[7], data=bytes(buffer[answer[4] : answer[3]]))
