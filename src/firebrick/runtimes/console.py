"""The console FIFO of a machine, while it is being started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firebrick.runtimes.base import CONSOLE_NAME

TAIL_BYTES = 16_384


@contextmanager
def open_console(directory: Path) -> Iterator[int]:
    """A descriptor for the machine's output, whose other end is always there: the FIFO, read-write.

    Never read from it: whoever holds a copy of a descriptor, a guest say, decides for all whether it blocks.
    """
    descriptor = os.open(directory / CONSOLE_NAME, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def console_tail(directory: Path) -> str:
    """What was said and not read by anyone yet, by a machine that is being started: the FIFO's last close throws
    it away. Never blocks."""
    with open_console(directory) as descriptor:
        try:
            return os.read(descriptor, TAIL_BYTES).decode(errors="replace")
        except OSError:
            return ""
