"""What the control plane hears of a failure in the node agent."""

import errno

from firebrick.model.errors import DiskFull, Internal, NotFound
from firebrick.node.service import told


def test_a_full_disk_is_told_whatever_failed_by_it() -> None:
    """It keeps what was being done, names the disk and says what to do."""
    failure = Internal("The record of machine m1 could not be written.")
    failure.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    heard = told(failure)
    assert isinstance(heard, DiskFull)
    assert heard.message.startswith("The record of machine m1 could not be written.")
    assert "disk of its node is full: free space" in heard.message
    assert isinstance(told(OSError(errno.ENOSPC, "No space left on device")), DiskFull)


def test_other_failures_stay_what_they_are() -> None:
    """No other error becomes one of the disk."""
    gone = NotFound("It is not here.")
    assert told(gone) is gone
    assert isinstance(told(ValueError("x")), Internal)
