"""Is a failure one of a disk without room? Asked of what was raised, because no figure of free space says it for sure:
another may have taken or given back the last block since."""

import errno
import os

from firebrick.linux.process import CommandFailed

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_WORDS = os.strerror(errno.ENOSPC).lower()


def is_out_of_space(failure: BaseException | None) -> bool:
    """Whether it, or what it came from, is a write that found no room, in this process or in a tool that it ran."""
    while failure is not None:
        if isinstance(failure, OSError) and failure.errno in _NO_ROOM:
            return True
        if isinstance(failure, CommandFailed) and _WORDS in failure.stderr.lower():
            return True
        failure = failure.__cause__
    return False
