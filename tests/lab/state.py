"""A machine that has booted, kept: the others start where it was, in about a second.

Its memory is a sparse file that every machine maps privately, so that a start reads nothing ahead and all share what
none has written. Its disk is the lower layer of theirs.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab import outer
from tests.lab.emulator import Emulator
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


def state(build: Build, emulator: Emulator, memory_mib: int) -> State:
    """The saved state for these and this size, made now if there is none. The caller holds the cache's lock."""
    # A state fits the qemu and the command line that saved it, and no other.
    made_by = (emulator.version.encode(), Path(outer.__file__).read_bytes(), *inside_files().values())
    folder = build.folder / f"state-{memory_mib}-{hashlib.sha256(b''.join(made_by)).hexdigest()[:8]}"
    if not folder.exists():
        making = Path(tempfile.mkdtemp(prefix="making-", dir=build.folder))
        try:
            _make(Wanted(build=build, emulator=emulator, memory_mib=memory_mib, shares_memory=True), making)
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    os.utime(folder)
    for old in sorted(build.folder.glob("state-*"), key=lambda path: path.stat().st_mtime)[:-KEPT_STATES]:
        shutil.rmtree(old)
    return State(folder=folder)


def _make(wanted: Wanted, making: Path) -> None:
    found = State(folder=making)
    found.memory.touch()
    os.truncate(found.memory, wanted.memory_mib << 20)
    maker = Outer.start(replace(wanted, memory_file=found.memory), making / "maker", wanted.build.root, "raw")
    try:
        maker.wait_booted()
        # What the first command would have to read and translate is read and settled before.
        maker.channel().shell("lab-check; /venv/bin/python -c 'import pytest, httpx, fastapi'; sync")
        maker.save(found.devices)
    finally:
        maker.stop()
