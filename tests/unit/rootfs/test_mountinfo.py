"""Reading mountinfo and copying sparse files."""

import os
from pathlib import Path

import pytest

from firebrick.linux.loop import clone_sparse
from firebrick.linux.mount import option_path, parse_mountinfo

LINES = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
46 27 254:0 /a /run/my\\040dir rw,nodev shared:1 master:2 - ext4 /dev/vda rw,discard
"""


def test_mountinfo_line_is_read() -> None:
    """Escapes in paths are undone, both option lists joined, propagation kept."""
    proc, own = parse_mountinfo(LINES)
    assert (proc.target, proc.fstype, proc.propagation, proc.is_shared) == (Path("/proc"), "proc", (), False)
    assert own.target == Path("/run/my dir")
    assert own.options == "rw,nodev,rw,discard"
    assert own.is_shared


@pytest.mark.parametrize(("path", "escaped"), [("/a:b", "/a\\:b"), ("/a,b", "/a\\,b"), ("/a\\b", "/a\\\\b")])
def test_option_paths_are_escaped(path: str, escaped: str) -> None:
    """Overlayfs' own separators in a path do not end it."""
    assert option_path(Path(path)) == escaped


def test_clone_keeps_data_and_holes(tmp_path: Path) -> None:
    """A clone has the same bytes and takes no disk for the holes."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.write(b"start")
        file.seek(64 << 20)
        file.write(b"end")
        file.truncate(128 << 20)
    clone_sparse(source, tmp_path / "clone")
    with (tmp_path / "clone").open("rb") as file:
        assert file.read(5) == b"start"
        file.seek(64 << 20)
        assert file.read(3) == b"end"
    made = os.stat(tmp_path / "clone")
    assert (made.st_size, made.st_blocks * 512 < 1 << 20) == (128 << 20, True)


def test_clone_never_overwrites(tmp_path: Path) -> None:
    """An existing target is refused and left as it was."""
    (tmp_path / "source").write_text("new")
    (tmp_path / "target").write_text("old")
    with pytest.raises(FileExistsError):
        clone_sparse(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "old"
