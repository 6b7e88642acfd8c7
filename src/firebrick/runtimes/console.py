"""The console FIFO of a machine, while it is being started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firebrick.runtimes.base import CONSOLE_NAME

TAIL_BYTES = 16_384


@contextmanager
def open_console(directory: Path) -> Iterator[int]:
    """A descriptor for the machine's output that never blocks and never ends: the FIFO, read-write."""
    descriptor = os.open(directory / CONSOLE_NAME, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def console_tail(descriptor: int) -> str:
    """What a failed start said; must be asked while the FIFO is open, for its last close throws it away."""
    try:
        return os.read(descriptor, TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
