"""A machine that has booted, kept: the others start where it was, in about a second.

Its memory is a sparse file that every machine maps privately, so that a start reads nothing ahead and all share what
none has written. Its disk is the lower layer of theirs.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lab import outer
from tests.lab.outer import Outer, Wanted
from tests.lab.root import Build, inside_files

KEPT_STATES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    folder: Path

    @property
    def memory(self) -> Path:
        return self.folder / "memory"

    @property
    def devices(self) -> Path:
        return self.folder / "devices"

    @property
    def disk(self) -> Path:
        return self.folder / "maker" / "disk.qcow2"


def state(build: Build, memory_mib: int) -> State:
    """The saved state for this build and size, made now if there is none. The caller holds the cache's lock."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True).stdout
    # A state fits the qemu and the command line that saved it, and no other.
    made_by = (version, Path(outer.__file__).read_bytes(), *inside_files().values())
    folder = build.folder / f"state-{memory_mib}-{hashlib.sha256(b''.join(made_by)).hexdigest()[:8]}"
    if not folder.exists():
        making = Path(tempfile.mkdtemp(prefix="making-", dir=build.folder))
        try:
            _make(build, memory_mib, making)
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    os.utime(folder)
    for old in sorted(build.folder.glob("state-*"), key=lambda path: path.stat().st_mtime)[:-KEPT_STATES]:
        shutil.rmtree(old)
    return State(folder=folder)


def _make(build: Build, memory_mib: int, making: Path) -> None:
    found = State(folder=making)
    found.memory.touch()
    os.truncate(found.memory, memory_mib << 20)
    wanted = Wanted(build=build, memory_mib=memory_mib, memory_file=found.memory, shares_memory=True)
    maker = Outer.start(wanted, making / "maker", build.root, "raw")
    try:
        maker.wait_booted()
        # What the first command would have to read and translate is read and settled before.
        maker.channel().shell("lab-check; /venv/bin/python -c 'import pytest, httpx, fastapi'; sync")
        maker.save(found.devices)
    finally:
        maker.stop()
