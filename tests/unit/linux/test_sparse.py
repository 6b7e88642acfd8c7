"""Pages of zeros become holes, and who can still write a file is known."""

import mmap
import os
from pathlib import Path

import pytest

from firebrick.linux.sparse import PAGE_BYTES, has_writers, punch_zeros, zero_runs

FULL, ZERO = b"x" * PAGE_BYTES, bytes(PAGE_BYTES)


@pytest.mark.parametrize(
    ("chunk", "runs"),
    [
        (b"", []),
        (FULL * 8, []),
        (ZERO * 8, [(0, 8)]),
        (ZERO * 3 + FULL + ZERO * 4, [(4, 8)]),
        (ZERO * 4 + FULL + ZERO * 3, [(0, 4)]),
        (FULL + ZERO * 5 + FULL + ZERO * 4 + FULL, [(1, 6), (7, 11)]),
        (FULL + ZERO * 4 + b"\0" * 100, [(1, 5)]),
    ],
)
def test_runs_of_zero_pages(chunk: bytes, runs: list[tuple[int, int]]) -> None:
    """Of four pages at least, by their places; a part of a page at the end is none."""
    assert zero_runs(chunk) == [(start * PAGE_BYTES, end * PAGE_BYTES) for start, end in runs]


def test_zeros_become_holes(tmp_path: Path) -> None:
    """The content and the size stay, the disk gets the zeros back, and twice is once."""
    content = FULL * 256 + ZERO * 512 + FULL + ZERO * 3 + FULL
    path = tmp_path / "file"
    path.write_bytes(content)
    os.sync()
    with path.open("r+b") as file:
        punched = punch_zeros(file.fileno())
        if punched == 0:
            pytest.skip("this file system has no holes")
        assert punched == 512 * PAGE_BYTES
        assert punch_zeros(file.fileno()) == 0
    assert path.read_bytes() == content
    assert path.stat().st_blocks * 512 < len(content) - 500 * PAGE_BYTES


def test_writers_are_known(tmp_path: Path) -> None:
    """By an open descriptor or by a shared mapping alone; readers are none."""
    path = tmp_path / "file"
    path.write_bytes(FULL)
    with path.open("rb") as reader, path.open("rb"):
        assert not has_writers(reader.fileno())
        with path.open("r+b") as writer:
            assert has_writers(reader.fileno())
            mapped = mmap.mmap(writer.fileno(), PAGE_BYTES)
        assert has_writers(reader.fileno())
        mapped.close()
        assert not has_writers(reader.fileno())
