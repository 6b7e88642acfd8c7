"""The archive is one that cpio itself reads, and the init script one that a shell understands."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from firebrick.builder.initramfs import Entry, cpio, init_script, initramfs


def test_cpio_reads_what_we_write(tmp_path: Path) -> None:
    """Names, modes, contents; lengths that need padding and such that do not."""
    program = shutil.which("cpio")
    if program is None:
        pytest.skip("NOT RUN: the program cpio is not installed")
    files = {f"file{size}": b"x" * size for size in range(6)}
    entries = [Entry(name="sub", mode=stat.S_IFDIR | 0o755)]
    entries += [Entry(name=f"sub/{name}", mode=stat.S_IFREG | 0o640, data=data) for name, data in files.items()]
    subprocess.run(
        [program, "--extract", "--quiet", "--no-preserve-owner"], input=cpio(entries), cwd=tmp_path, check=True
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "sub").iterdir()} == files
    assert stat.S_IMODE((tmp_path / "sub/file5").stat().st_mode) == 0o640


def test_equal_parts_make_equal_archives() -> None:
    """No clock, no name of a user: what was built twice is the same file."""
    parts = {"busybox": b"program", "init": b"#!", "modules": {"virtio": b"a", "virtio_blk": b"b"}}
    made = initramfs(**parts)  # type: ignore[arg-type]
    assert made == initramfs(**parts)  # type: ignore[arg-type]
    assert len(made) % 4 == 0
    assert b"virtio\nvirtio_blk\n" in made


def test_a_shell_understands_the_init_script() -> None:
    shell = shutil.which("dash") or "/bin/sh"
    subprocess.run([shell, "-n"], input=init_script(), check=True)
