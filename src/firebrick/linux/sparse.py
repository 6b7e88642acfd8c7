"""Holes in files, and who may still write one. Functions block: call them from a thread. They raise OSError."""

import ctypes
import errno
import fcntl
import os

from firebrick.linux.loop import data_extents

PAGE_BYTES = 4096
SMALLEST_HOLE_PAGES = 4
"""Shorter runs of zeros stay: each hole costs the filesystem an extent, and each extent every later reader."""

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(_CHUNK_BYTES)
_ZERO_PAGE = bytes(PAGE_BYTES)
_CANNOT_PUNCH = (errno.EOPNOTSUPP, errno.ENOSYS)

_libc = ctypes.CDLL(None, use_errno=True)


def punch_zeros(descriptor: int) -> int:
    """Give pages of zeros back to the disk; what is read stays the same. Answers how many bytes.

    Where the filesystem has no holes nothing is done. Cost: a read of all data; half a second a GiB of it in memory.
    """
    size = os.fstat(descriptor).st_size
    punched = 0
    for start, end in data_extents(descriptor, size):
        for position in range(start, end, _CHUNK_BYTES):
            chunk = os.pread(descriptor, min(_CHUNK_BYTES, end - position), position)
            for first, last in zero_runs(chunk):
                if not _punch(descriptor, position + first, last - first):
                    return punched
                punched += last - first
    return punched


def zero_runs(chunk: bytes) -> list[tuple[int, int]]:
    """(start, end) of the runs of whole zero pages that are worth a hole."""
    if chunk == _ZEROS[: len(chunk)]:
        return [(0, len(chunk))] if chunk else []
    runs = []
    start = 0
    for position in range(0, len(chunk) + 1, PAGE_BYTES):
        if chunk[position : position + PAGE_BYTES] == _ZERO_PAGE:
            continue
        if position - start >= SMALLEST_HOLE_PAGES * PAGE_BYTES:
            runs.append((start, position))
        start = position + PAGE_BYTES
    return runs


def has_writers(descriptor: int) -> bool:
    """Whether anyone has the file open, or mapped, for writing. `descriptor` is open for reading only.

    A file that cannot be asked counts as one that has.
    """
    try:
        # A lease for reading is granted only where nobody can write (fcntl(2)).
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return True
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _punch(descriptor: int, offset: int, length: int) -> bool:
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc.fallocate(descriptor, mode, ctypes.c_longlong(offset), ctypes.c_longlong(length)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_PUNCH:
        return False
    raise OSError(number, os.strerror(number))
