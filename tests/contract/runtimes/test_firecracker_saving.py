"""Taking a save out of the hands of a monitor that may be anyone's."""

import os
from pathlib import Path

import pytest

from firebrick.runtimes.firecracker.memory import MOST_STATE_BYTES
from firebrick.runtimes.firecracker.saving import SavePlace, give_agent, keep_base, read_save

pytestmark = pytest.mark.needs_root

USER = 1_000_065_000
SIZE = 1 << 20


@pytest.fixture
def place(tmp_path: Path) -> SavePlace:
    made = SavePlace(directory=tmp_path / "save")
    made.make()
    made.open_for(USER)
    (made.directory / "memory").write_bytes(b"m" * 4096 + bytes(SIZE - 4096))
    (made.directory / "state").write_bytes(b"state")
    return made


def test_a_monitor_gets_two_files_in_a_directory_of_ours(place: SavePlace) -> None:
    """They are its user's alone, what was there before is gone, and it can make nothing beside them."""
    place.open_for(USER)
    assert (place.directory.stat().st_uid, place.directory.stat().st_mode & 0o777) == (0, 0o711)
    for name in ("memory", "state"):
        found = (place.directory / name).stat()
        assert (found.st_uid, found.st_mode & 0o777, found.st_size) == (USER, 0o600, 0)
    place.clear()
    place.clear()
    assert list(place.directory.iterdir()) == []


def test_memory_is_moved_out(place: SavePlace, tmp_path: Path) -> None:
    """The same file, ours and read-only, with holes."""
    before = (place.directory / "memory").stat()
    place.take_memory(tmp_path / "memory", SIZE)
    after = (tmp_path / "memory").stat()
    assert (after.st_ino, after.st_uid, after.st_mode & 0o777) == (before.st_ino, 0, 0o444)
    assert after.st_blocks < before.st_blocks
    assert not (place.directory / "memory").exists()


def test_memory_that_somebody_can_still_write_is_copied(place: SavePlace, tmp_path: Path) -> None:
    """Whoever kept it open changes what nobody reads."""
    with (place.directory / "memory").open("r+b", buffering=0) as kept:
        place.take_memory(tmp_path / "memory", SIZE)
        kept.write(b"changed")
    assert (tmp_path / "memory").read_bytes() == b"m" * 4096 + bytes(SIZE - 4096)
    assert (tmp_path / "memory").stat().st_mode & 0o777 == 0o444


def test_a_save_goes_over_a_copy_of_what_was(place: SavePlace, tmp_path: Path) -> None:
    """What the monitor writes into it changes nothing of the save that it came from, which may be gone by then."""
    former = tmp_path / "former"
    former.write_bytes(b"f" * SIZE)
    former.chmod(0o444)
    keep_base(former, tmp_path / "base")
    place.open_for(USER, tmp_path / "base")
    memory = place.directory / "memory"
    assert (memory.stat().st_uid, memory.stat().st_mode & 0o777) == (USER, 0o600)
    with memory.open("r+b") as written:
        written.write(b"new")
    assert former.read_bytes() == b"f" * SIZE
    former.unlink()
    place.take_memory(tmp_path / "memory", SIZE)
    assert (tmp_path / "memory").read_bytes() == b"new" + b"f" * (SIZE - 3)


def test_a_base_is_the_last_save(tmp_path: Path) -> None:
    """And no other file's blocks are kept for it."""
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
        keep_base(tmp_path / name, tmp_path / "base")
        assert (tmp_path / "base").read_text() == name
    assert (tmp_path / "first").stat().st_nlink == 1


def test_what_is_not_what_was_made_is_refused(place: SavePlace, tmp_path: Path) -> None:
    """A link to the host's files, a FIFO, a second name, a memory or a state of another size."""
    memory, state = place.directory / "memory", place.directory / "state"
    with pytest.raises(ValueError, match="another size"):
        place.take_memory(tmp_path / "memory", SIZE + 1)
    os.link(memory, tmp_path / "second name")
    with pytest.raises(ValueError, match="not the file"):
        place.take_memory(tmp_path / "memory", SIZE)
    memory.unlink()
    memory.symlink_to("/etc/shadow")
    with pytest.raises(OSError, match="symbolic links"):
        place.take_memory(tmp_path / "memory", SIZE)
    os.truncate(state, MOST_STATE_BYTES + 1)
    with pytest.raises(ValueError, match="no possible size"):
        place.read_state()
    os.truncate(state, 0)
    with pytest.raises(ValueError, match="no possible size"):
        place.read_state()
    state.unlink()
    os.mkfifo(state)
    with pytest.raises(ValueError, match="not the file"):
        place.read_state()
    assert not (tmp_path / "memory").exists()


def test_an_agent_is_shared_by_name(tmp_path: Path) -> None:
    """One file for all machines and saves of a version, so its pages are in memory once."""
    (tmp_path / "agent").write_bytes(b"agent")
    give_agent(tmp_path / "agent", tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_ino == (tmp_path / "agent").stat().st_ino


def test_a_save_that_was_never_finished_is_refused(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"m")
    (tmp_path / "state").write_bytes(b"s")
    with pytest.raises(ValueError, match="missing or damaged"):
        read_save(tmp_path)
