"""Files of saves, on the host's side: where a monitor may write one, how it is taken out, how one is read.

A monitor may be in the hands of whoever broke out of its guest. It writes to files that we made, in a directory that is
ours and that it sees as /save: it can put no link there. Files are taken out by name only after they were looked at,
and what another could still write is copied. Functions block: call them from a thread.
"""

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from firebrick.linux.loop import clone_sparse, copy_file
from firebrick.linux.sparse import has_writers, punch_zeros
from firebrick.runtimes.firecracker.memory import (
    AGENT,
    FACTS,
    MOST_FACTS_BYTES,
    MOST_STATE_BYTES,
    SavedFile,
    SaveFacts,
    damage,
    facts_from_json,
    facts_to_json,
)
from firebrick.runtimes.firecracker.plan import MEMORY, STATE

SAVED_MODE = 0o444
"""Monitors of many users read them; the directory keeps others out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavePlace:
    """The directory that a monitor sees as /save."""

    directory: Path

    def make(self) -> None:
        """Once, before the monitor starts. Raises OSError."""
        self.directory.mkdir(mode=0o711)

    def open_for(self, user_id: int, base: Path | None = None) -> None:
        """Two files for the monitor to fill, empty but for what the memory was before. Undo: `clear`. Raises OSError.

        Args: base: that memory, of which the new one shares the blocks where the filesystem can.
        """
        self.clear()
        if base is not None:
            clone_sparse(base, self.directory / MEMORY)
        for name in (MEMORY, STATE):
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.directory / name, flags, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
                os.fchown(descriptor, user_id, user_id)
            finally:
                os.close(descriptor)

    def clear(self) -> None:
        """Idempotent. Raises OSError."""
        for name in (MEMORY, STATE):
            (self.directory / name).unlink(missing_ok=True)

    def read_state(self) -> bytes:
        """Raises OSError, ValueError: it is empty or too large."""
        with open(_open_made(self.directory / STATE), "rb") as file:
            state = file.read(MOST_STATE_BYTES + 1)
        if not 0 < len(state) <= MOST_STATE_BYTES:
            raise ValueError("the monitor wrote a state of no possible size")
        return state

    def take_memory(self, target: Path, size_bytes: int) -> None:
        """Move the memory's file out, with holes and flushed. Raises OSError, ValueError: it is of another size."""
        source = self.directory / MEMORY
        descriptor = _open_made(source)
        try:
            if os.fstat(descriptor).st_size != size_bytes:
                raise ValueError("the monitor wrote a memory of another size")
            # From here on its user can open it no more; whoever has it open keeps it.
            os.fchown(descriptor, 0, 0)
            os.fchmod(descriptor, SAVED_MODE)
            if has_writers(descriptor):
                copy_file(source, target)
            else:
                _move(source, target)
        finally:
            os.close(descriptor)
        with target.open("r+b") as file:
            os.fchmod(file.fileno(), SAVED_MODE)
            if os.fstat(file.fileno()).st_size != size_bytes:
                raise ValueError("the memory changed while it was copied")
            punch_zeros(file.fileno())
            os.fsync(file.fileno())


def _open_made(path: Path) -> int:
    """A file that we made and somebody else wrote. Raises OSError, ValueError: it is something else by now."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise ValueError(f"{path.name} is not the file that was made")
    return descriptor


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        copy_file(source, target)


def keep_base(memory: Path, base: Path) -> None:
    """Hold on to what a memory was, by a second name. Where there can be none it is not held on to. Raises OSError."""
    base.unlink(missing_ok=True)
    try:
        os.link(memory, base)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EMLINK):
            raise


def give_agent(source: Path, target: Path) -> None:
    """The guest agent's drive under a second name, or as a copy where that cannot be. Raises OSError."""
    try:
        os.link(source, target)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EMLINK):
            raise
        copy_file(source, target)
        target.chmod(SAVED_MODE)


def finish_save(directory: Path, facts: SaveFacts, state: bytes) -> None:
    """Write state and facts beside memory and agent, the facts last, all flushed. Raises OSError."""
    _write(directory / STATE, state)
    _write(directory / FACTS, facts_to_json(facts).encode())
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_files(directory: Path, state: bytes) -> dict[str, SavedFile]:
    """What the facts tell of the files. Raises OSError."""
    return {
        MEMORY: SavedFile(size_bytes=(directory / MEMORY).stat().st_size),
        STATE: SavedFile(size_bytes=len(state), sha256=hashlib.sha256(state).hexdigest()),
        AGENT: SavedFile(size_bytes=(directory / AGENT).stat().st_size),
    }


def read_save(directory: Path) -> SaveFacts:
    """The facts of a save whose files are as they tell. Raises ValueError: a sentence that says what is wrong."""
    try:
        facts = facts_from_json(_read(directory / FACTS, MOST_FACTS_BYTES).decode())
        sizes = {name: _size(directory / name) for name in facts.files}
        wrong = damage(facts, sizes, _read(directory / STATE, MOST_STATE_BYTES))
    except (OSError, ValueError) as exc:
        raise ValueError("Its files are missing or damaged.") from exc
    if wrong:
        raise ValueError(wrong)
    return facts


def _size(path: Path) -> int:
    found = path.lstat()
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _read(path: Path, most_bytes: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        return file.read(most_bytes)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), SAVED_MODE)
        os.fsync(file.fileno())
