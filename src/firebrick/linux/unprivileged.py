"""Give up being root for good, in a process that reads what guests send."""

import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_libc = ctypes.CDLL(None, use_errno=True)


def become(user_id: int) -> None:
    """Be this user and group, and no other, for the rest of this process's life; die with the parent.

    No group, no capability, no way to either by a set-uid program, no child, no core file. Raises OSError.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setgroups([])
    os.setresgid(user_id, user_id, user_id)
    # Root's capabilities go with its ids.
    os.setresuid(user_id, user_id, user_id)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # NOTE: after the change of ids, which clears it.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"prctl {option}")
