"""Watch processes that are not our children: when they end, with which status, and which there are."""

import asyncio
import fcntl
import os
import struct
from pathlib import Path

from firebrick.linux.process import ProcessRef, process_ref

# struct pidfd_info of linux/pidfd.h in its first version: mask at 0, exit_code at 60. Kernel 6.15 fills the
# latter in after the process was reaped, when the mask asks for it; older kernels do not know the call.
_INFO_BYTES = 64
_PIDFD_GET_INFO = 3 << 30 | _INFO_BYTES << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3
_EXIT_CODE_OFFSET = 60
_STAT_EXIT_CODE = 49
"""Index of exit_code in /proc/<pid>/stat, counted from the state, which is the third field."""


class ProcessWatch:
    """One process, held by a pidfd: what is told of it is never told of a later one with its pid."""

    def __init__(self, ref: ProcessRef, descriptor: int) -> None:
        self.ref = ref
        self._descriptor = descriptor

    @classmethod
    def open(cls, pid: int) -> "ProcessWatch | None":
        """None when there is no such process."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return None
        ref = process_ref(pid)
        if ref is None:
            os.close(descriptor)
            return None
        return cls(ref, descriptor)

    @property
    def is_alive(self) -> bool:
        return self.ref.is_alive()

    async def wait(self) -> None:
        """Return when it has ended. Any number may wait, and `close` may come before the end."""
        descriptor = os.dup(self._descriptor)
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        try:
            loop.add_reader(descriptor, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(descriptor)
        finally:
            os.close(descriptor)

    def exit_code(self) -> int | None:
        """After the end: status, or minus the signal; None where the kernel no longer tells."""
        status = self._status_of_zombie()
        if status is None:
            status = self._status_of_reaped()
        return None if status is None else os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        os.close(self._descriptor)

    def _status_of_zombie(self) -> int | None:
        try:
            text = Path(f"/proc/{self.ref.pid}/stat").read_text()
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        is_it = fields[0] in "ZX" and int(fields[19]) == self.ref.start_ticks
        return int(fields[_STAT_EXIT_CODE]) if is_it else None

    def _status_of_reaped(self) -> int | None:
        request = bytearray(struct.pack("=Q", _PIDFD_INFO_EXIT).ljust(_INFO_BYTES, b"\0"))
        try:
            fcntl.ioctl(self._descriptor, _PIDFD_GET_INFO, request)
        except OSError:
            return None
        (mask,) = struct.unpack_from("=Q", request)
        (status,) = struct.unpack_from("=i", request, _EXIT_CODE_OFFSET)
        return int(status) if mask & _PIDFD_INFO_EXIT else None


def processes_with_arguments(*wanted: str) -> list[ProcessRef]:
    """Every process whose command line holds all of these texts, each within one argument."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        # NOTE: identified before it is looked at: a later process of that pid is then never taken for it.
        ref = process_ref(int(entry))
        try:
            arguments = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if ref is not None and all(any(text in argument for argument in arguments) for text in wanted):
            found.append(ref)
    return found
