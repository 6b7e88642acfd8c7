"""A log that cannot be written stops nothing."""

import errno
import io

from firebrick.log import Unfailing


class FullStream(io.StringIO):
    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_full_disk_stops_no_work_and_is_told_afterwards() -> None:
    """Lines that could not be written are counted, and the count is the first line that can be."""
    stream = FullStream()
    log = Unfailing(stream)
    log.write("lost\n")
    log.write("lost too\n")
    stream.is_full = False
    log.write("heard\n")
    log.flush()
    assert stream.getvalue() == '{"event": "log.writes_failed", "count": 2}\nheard\n'
