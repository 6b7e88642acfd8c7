"""Whether this machine can run a runtime at all: the reason for a skip, in words a user would accept."""

import os
import shutil
from pathlib import Path

from firebrick.runtimes.firecracker.plan import Tools
from tests.support.instance import CACHE


def missing_runtime(name: str) -> str | None:
    """None when the runtime's program is there (or `up` can install it), else why not."""
    if os.geteuid() != 0:
        return f"{name} needs root"
    if name == "firecracker":
        return no_microvms(Tools(directory=CACHE / "tools" / "firecracker"))
    if name == "container" and not (shutil.which("runc") or shutil.which("crun")) and not shutil.which("apt-get"):
        return "neither runc nor crun is installed"
    if name == "gvisor" and not _runsc() and not shutil.which("apt-get"):
        return "no runsc is installed"
    return None


def no_microvms(tools: Tools) -> str | None:
    """Why no microVM can be had here; None when one can. That /dev/kvm is there is not enough: a machine whose KVM
    boots guests says so by FIREBRICK_TEST_KVM=1, or is the lab."""
    if os.environ.get("FIREBRICK_TEST_KVM") != "1" and "FIREBRICK_IN_LAB" not in os.environ:
        return "no KVM that boots guests (set FIREBRICK_TEST_KVM=1 where there is one; `./dev lab` has one)"
    missing = [path.name for path in tools.files if not path.is_file()]
    return f"{', '.join(missing)} missing in {tools.directory} (`firebrick setup firecracker`)" if missing else None


def _runsc() -> Path | None:
    mine = CACHE / "tools" / "runsc"
    found = shutil.which("runsc")
    return mine if mine.exists() else Path(found) if found else None
