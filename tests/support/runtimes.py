"""Whether this machine can run a runtime at all: the reason for a skip, in words a user would accept."""

import os
import shutil
from pathlib import Path

from tests.support.instance import CACHE


def missing_runtime(name: str) -> str | None:
    """None when the runtime's program is there (or `up` can install it), else why not."""
    if os.geteuid() != 0:
        return f"{name} needs root"
    if name == "container" and not (shutil.which("runc") or shutil.which("crun")) and not shutil.which("apt-get"):
        return "neither runc nor crun is installed"
    if name == "gvisor" and not _runsc() and not shutil.which("apt-get"):
        return "no runsc is installed"
    return None


def _runsc() -> Path | None:
    mine = CACHE / "tools" / "runsc"
    found = shutil.which("runsc")
    return mine if mine.exists() else Path(found) if found else None
