"""Collect every ended child, ours and those that were orphaned to us, the moment it ends.

`kill -0` succeeds on a zombie, so whoever kills a process and looks again would see it alive.
"""

import asyncio
import os
import signal
from collections.abc import Callable

PR_SET_CHILD_SUBREAPER = 36
_PARENT, _SESSION = 1, 3


class Reaper:
    """`on_kill` is called with the id and the name of each child that SIGKILL ended.

    The loop must have a handler of another signal already: so it is woken by every signal that Python handles.
    """

    def __init__(self, on_kill: Callable[[int, str], None] = lambda pid, name: None) -> None:
        self._watched: dict[int, Callable[[int], None]] = {}
        self._on_kill = on_kill

    def open(self) -> None:
        """Begin. Orphans come to us when we are PID 1, and otherwise because we ask the kernel for them."""
        if os.getpid() != 1:
            _become_subreaper()
        loop = asyncio.get_running_loop()
        # The loop's own handlers wake it a second time for each signal: another turn and four system calls.
        signal.signal(signal.SIGCHLD, lambda *_: loop.call_soon(self.reap))
        signal.siginterrupt(signal.SIGCHLD, False)

    def close(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def watch(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call `ended` with the wait status when the child `pid` ends."""
        self._watched[pid] = ended

    def reap(self) -> None:
        while True:
            try:
                # Looked at before it is collected: until then its name can still be read.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None:
                    return
                if found.si_code == os.CLD_KILLED and found.si_status == signal.SIGKILL:
                    self._on_kill(found.si_pid, _name(found.si_pid))
                pid, status = os.waitpid(found.si_pid, os.WNOHANG)
            except ChildProcessError:
                return
            ended = self._watched.pop(pid, None)
            if ended:
                ended(status)

    def kill_all(self) -> None:
        """SIGKILL every descendant and collect it: as each dies, its children come to us and are next.

        As PID 1 there is nothing to do, for the kernel kills them with us.
        """
        while os.getpid() != 1 and (children := _children()):
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            for pid in children:
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    continue


def tell_session(leader: int, number: int) -> None:
    """Send a signal to every process of a session."""
    for pid in _processes(_SESSION, leader):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
            return file.read(64).strip().decode("utf-8", "replace")
    except OSError:
        return ""


def _children() -> list[int]:
    return _processes(_PARENT, os.getpid())


def _processes(field: int, value: int) -> list[int]:
    """The processes with this value in a field of their /proc/<pid>/stat."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The command's name may hold spaces and parentheses: fields count from its last ")".
                    seen = int(file.read().rpartition(b")")[2].split()[field])
            except OSError:
                continue
            if seen == value:
                found.append(int(name))
    return found


def _become_subreaper() -> None:
    # Imported here because as PID 1, in every real sandbox, it is not needed and costs a megabyte.
    try:
        import ctypes
    except ImportError:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
