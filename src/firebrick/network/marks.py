"""Notes under /run that outlive our process but not the kernel objects they speak of.

`ready/<index>` is the one proof that a slot is whole and nobody was in it: written last when it is made, removed
first when it is taken. Whatever is interrupted in between leaves no note, and the slot is made anew.
`names/<index>` holds the rules by name of a slot in use, for the next name filter and the next node agent.
`forwarding` names the links on which we turned forwarding on, so that exactly these are turned back.
"""

import os
import shutil
from pathlib import Path

RUN_DIR = Path("/run/firebrick")


class Marks:
    def __init__(self, instance: str) -> None:
        self._dir = RUN_DIR / instance
        self._ready = self._dir / "ready"
        self._names = self._dir / "names"

    def prepare(self) -> None:
        self._ready.mkdir(parents=True, exist_ok=True)
        # Whom a sandbox may talk to is its owner's affair.
        self._names.mkdir(mode=0o700, exist_ok=True)

    def put_ready(self, index: int, proof: str) -> None:
        """Note that the slot is whole; `proof` tells this very slot from an earlier one."""
        path = self._ready / f"{index}.new"
        path.write_text(proof)
        os.replace(path, self._ready / str(index))

    def take_ready(self, index: int) -> None:
        """Remove the note: about 20 µs, so it may stand on the create path. Idempotent."""
        (self._ready / str(index)).unlink(missing_ok=True)

    def ready(self) -> dict[int, str]:
        if not self._ready.is_dir():
            return {}
        return {int(path.name): path.read_text() for path in self._ready.iterdir() if path.name.isdecimal()}

    def put_names(self, index: int, rules: str) -> None:
        """Raises OSError."""
        path = self._names / f"{index}.new"
        path.write_text(rules)
        os.replace(path, self._names / str(index))

    def take_names(self, index: int) -> None:
        """Idempotent."""
        (self._names / str(index)).unlink(missing_ok=True)

    def named(self) -> frozenset[int]:
        if not self._names.is_dir():
            return frozenset()
        return frozenset(int(path.name) for path in self._names.iterdir() if path.name.isdecimal())

    def open_names(self, index: int) -> int:
        """A descriptor to read them by, which the caller closes. Raises FileNotFoundError."""
        return os.open(self._names / str(index), os.O_RDONLY | os.O_CLOEXEC)

    def put_forwarding(self, links: frozenset[str]) -> None:
        path = self._dir / "forwarding.new"
        path.write_text("\n".join(sorted(links)))
        os.replace(path, self._dir / "forwarding")

    def forwarding(self) -> frozenset[str]:
        try:
            return frozenset((self._dir / "forwarding").read_text().split())
        except FileNotFoundError:
            return frozenset()

    def remove(self) -> None:
        """Idempotent."""
        shutil.rmtree(self._dir, ignore_errors=True)
        try:
            RUN_DIR.rmdir()
        except OSError:
            # Another instance's notes are there, or nobody's ever were.
            pass
