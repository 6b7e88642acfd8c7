"""A fault at a chosen step, for `firebrick drill`: off unless a setting names a file, and then a `stat` for each step.

The file holds `<workflow>.<step>.<before|after> <pid>`. Who reaches that point removes the file and kills that process
(itself, the node agent, the edge) with SIGKILL; so a point strikes once, and not again in the recovery from it. With
`wait` for the pid, the file becomes `<file>.reached`, and the step goes on when that is gone: the drill does its damage
between the two.
"""

import os
import signal
import time
from pathlib import Path

WAIT_S = 10.0
POLL_S = 0.002
_FILE: Path | None = None


def arm(path: str) -> None:
    """Heed the file at `path` from now on; empty: none. For the whole process, once, at its start."""
    global _FILE
    _FILE = Path(path) if path else None


def reached(point: str) -> None:
    if _FILE is None or not _FILE.exists():
        return
    wanted, _, pid = _FILE.read_text().strip().partition(" ")
    if wanted != point:
        return
    if pid == "wait":
        _wait_for_drill(_FILE)
    else:
        _FILE.unlink()
        os.kill(int(pid), signal.SIGKILL)


def _wait_for_drill(file: Path) -> None:
    """The whole process stands still meanwhile, as it does in the moment of its death."""
    mark = file.rename(file.with_suffix(".reached"))
    deadline = time.monotonic() + WAIT_S
    while mark.exists() and time.monotonic() < deadline:
        time.sleep(POLL_S)
