"""Death at a chosen step, for `firebrick drill`: off unless a setting names a file, and then a `stat` for each step.

The file holds `<workflow>.<step>.<before|after> <pid>`. Who reaches that point removes the file and kills that process
(itself, the node agent, the edge) with SIGKILL; so a point strikes once, and not again in the recovery from it.
"""

import os
import signal
from pathlib import Path

_FILE: Path | None = None


def arm(path: str) -> None:
    """Heed the file at `path` from now on; empty: none. For the whole process, once, at its start."""
    global _FILE
    _FILE = Path(path) if path else None


def reached(point: str) -> None:
    if _FILE is None or not _FILE.exists():
        return
    wanted, _, pid = _FILE.read_text().strip().partition(" ")
    if wanted == point:
        _FILE.unlink()
        os.kill(int(pid), signal.SIGKILL)
