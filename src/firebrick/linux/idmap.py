"""A user namespace as a map of ids: what an idmapped mount wants as its argument."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firebrick.linux.process import CommandFailed

ID_COUNT = 65536
"""Ids of one machine: 0 to 65535, as every distribution's useradd assumes."""


def open_shifted_namespace(shift: int) -> int:
    """Descriptor of a user namespace that maps inside 0… to `shift`… on the host. The caller closes it.

    Effects: one short-lived process, gone when this returns; the namespace lives as long as the descriptor.
    Raises: CommandFailed, OSError.
    """
    # The child says when its namespace exists (one byte), then waits for our end of its input to close.
    command = ["unshare", "--user", "sh", "-c", "echo; read _"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.read(1):
            _, stderr = process.communicate()
            raise CommandFailed(command, process.returncode, stderr.decode(errors="replace"))
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text(f"0 {shift} {ID_COUNT}\n")
        return os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        process.kill()
        process.communicate()


_PR_SET_SECUREBITS = 28
_NO_SETUID_FIXUP = 4
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def filesystem_user(user_id: int) -> Iterator[None]:
    """Be this user and group to filesystems, with all capabilities, in the calling thread while the block runs.

    overlayfs works as whoever mounted it; on an idmapped upper, the host's root is nobody and could make no file.
    """
    _securebits(_NO_SETUID_FIXUP)
    _libc.setfsgid(user_id)
    _libc.setfsuid(user_id)
    try:
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)
        _securebits(0)


def _securebits(bits: int) -> None:
    # Without it the kernel takes the capabilities away when the id changes from root's.
    if _libc.prctl(_PR_SET_SECUREBITS, bits, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"cannot set the thread's secure bits to {bits}")


class ShiftedNamespaces:
    """Namespaces by shift, each made once: the first costs a process, the next are a look-up. Thread-safe."""

    def __init__(self) -> None:
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, shift: int) -> int:
        """Raises: CommandFailed, OSError."""
        with self._lock:
            if shift not in self._descriptors:
                self._descriptors[shift] = open_shifted_namespace(shift)
            return self._descriptors[shift]

    def close(self) -> None:
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])
