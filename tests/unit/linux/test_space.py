"""Which failures are those of a disk without room."""

import errno

import pytest

from firebrick.linux.process import CommandFailed
from firebrick.linux.space import is_out_of_space
from firebrick.model.errors import Internal


def chained(cause: BaseException) -> Internal:
    try:
        raise Internal("It could not be written.") from cause
    except Internal as exc:
        return exc


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        CommandFailed(["runc", "create"], 1, "write state.json: no space left on device"),
        chained(OSError(errno.ENOSPC, "No space left on device")),
        chained(chained(CommandFailed(["mkfs"], 1, "No space left on device"))),
    ],
)
def test_no_room(failure: BaseException) -> None:
    """In this process or in a tool that it ran, however deep in the chain."""
    assert is_out_of_space(failure)


@pytest.mark.parametrize(
    "failure", [None, OSError(errno.EIO, "I/O error"), CommandFailed(["runc"], 1, "busy"), chained(ValueError("x"))]
)
def test_other_failures(failure: BaseException | None) -> None:
    """What has another cause is not told as a full disk."""
    assert not is_out_of_space(failure)
