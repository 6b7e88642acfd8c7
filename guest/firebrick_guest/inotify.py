"""The kernel's file events (inotify), as they come. Nothing here waits: descriptors are non-blocking."""

import ctypes
import os
import struct
from errno import ENOMEM, ENOSPC

MODIFY = 0x2
ATTRIB = 0x4
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
QUEUE_OVERFLOW = 0x4000
IGNORED = 0x8000
IS_DIRECTORY = 0x40000000
_ONLY_DIRECTORIES = 0x01000000
_DONT_FOLLOW = 0x02000000
_WANTED = MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
_HEAD = struct.Struct("iIII")

READ_BYTES = 64 * 1024
# Of statfs(2), the kinds of filesystem whose other users' changes no kernel here hears of: NFS, SMB (three), FUSE.
_NETWORK_MAGICS = (0x6969, 0xFF534D42, 0x517B, 0xFE534D42, 0x65735546)
_STATFS_BYTES = 256

_libc = ctypes.CDLL(None, use_errno=True)

Event = tuple[int, int, int, str]
"""Watch number, mask, cookie that joins the two halves of a move, name inside the watched directory or ""."""


class Inotify:
    """One event queue of the kernel. Every method raises OSError."""

    def __init__(self) -> None:
        self.descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")

    def add(self, path: str, *, follow: bool) -> int:
        """Watch the directory `path`; the number of its watch, which is the old one if it is watched already."""
        mask = _WANTED | _ONLY_DIRECTORIES | (0 if follow else _DONT_FOLLOW)
        return _checked(_libc.inotify_add_watch(self.descriptor, os.fsencode(path), ctypes.c_uint32(mask)), path)

    def remove(self, watch: int) -> None:
        _libc.inotify_rm_watch(self.descriptor, watch)

    def read(self) -> list[Event]:
        """Some of the events that wait; none: there are no more for now."""
        try:
            raw = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return []
        events: list[Event] = []
        position = 0
        while position < len(raw):
            watch, mask, cookie, size = _HEAD.unpack_from(raw, position)
            position += _HEAD.size
            name = raw[position : position + size].rstrip(b"\0")
            position += size
            events.append((watch, mask, cookie, os.fsdecode(name)))
        return events

    def close(self) -> None:
        os.close(self.descriptor)


def is_network_mount(path: str) -> bool:
    """Whether `path` is on a filesystem that others change behind this kernel's back. Raises OSError."""
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    _checked(_libc.statfs(os.fsencode(path), found), path)
    return struct.unpack_from("Q", found)[0] in _NETWORK_MAGICS


def is_exhausted(exc: OSError) -> bool:
    """Whether a watch was refused for its number and not for its path."""
    return exc.errno in (ENOSPC, ENOMEM)


def _checked(answer: int, what: str) -> int:
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return answer
