"""What a machine has written, packed and unpacked: the same tree, and nothing of what it deleted."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick_guest.disk import END, NONSENSE, Unpacker, pack


def seen(top: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that a user could see of a tree."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        own = path.lstat()
        content: object = None
        if stat.S_ISREG(own.st_mode):
            content = path.read_bytes()
        elif path.is_symlink():
            content = os.readlink(path)
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        mtime_ns = own.st_mtime_ns if path != top else 0
        found[str(path.relative_to(top))] = (own.st_mode, own.st_uid, own.st_gid, mtime_ns, content, attributes)
    return found


def make_tree(top: Path) -> None:
    (top / "tmp").mkdir(parents=True)
    (top / "home/user/deep").mkdir(parents=True)
    (top / "home/user/text").write_text("hello")
    (top / "home/user/text").chmod(0o4751)
    os.link(top / "home/user/text", top / "home/user/deep/again")
    (top / "home/user/link").symlink_to("../nowhere")
    (top / "home/user/empty").touch()
    os.mkfifo(top / "home/user/fifo")
    (top / "tmp" / "ключ").write_text("x")
    (top / "tmp" / os.fsdecode(b"not-\xff-text")).write_bytes(b"\0\xff")
    with (top / "tmp/sparse").open("wb") as file:
        file.truncate(5_000_000)
        file.seek(2_000_000)
        file.write(b"middle" + bytes(600_000) + b"end")
    if os.geteuid() == 0:
        os.chown(top / "home/user/text", 1000, 1001)
    os.setxattr(top / "home/user/empty", "user.note", b"\x01\x02")
    os.utime(top / "home/user", ns=(1_000_000_007, 1_000_000_007))


def unpack(base: Path, pieces: list[bytes]) -> None:
    unpacker = Unpacker(str(base))
    for piece in pieces:
        unpacker.feed(piece)
    unpacker.finish()


@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 30])
def test_a_tree_comes_back(tmp_path: Path, step: int) -> None:
    """Files, links, modes, owners, times, attributes and holes, however the stream is cut."""
    make_tree(tmp_path / "here")
    stream = b"".join(pack(str(tmp_path / "here"), 0.0))
    assert stream.endswith(END)
    assert len(stream) < 1_000_000
    (tmp_path / "there/tmp").mkdir(parents=True)
    if step == 1:
        stream_parts = [stream[i : i + 1] for i in range(0, 3000)] + [stream[3000:]]
    else:
        stream_parts = [stream[i : i + step] for i in range(0, len(stream), step)]
    unpack(tmp_path / "there", stream_parts)
    assert seen(tmp_path / "there") == seen(tmp_path / "here")
    assert (tmp_path / "there/tmp/sparse").stat().st_blocks * 512 < 2_000_000
    again = tmp_path / "there/home/user/deep/again"
    assert again.samefile(tmp_path / "there/home/user/text")


def test_what_was_deleted_or_replaced_is_not_there(tmp_path: Path) -> None:
    """A fresh image has it all; of it stays what the names tell, and what is mounted by the host."""
    make_tree(tmp_path / "here")
    (tmp_path / "here/etc").mkdir()
    there = tmp_path / "there"
    for name in ("proc/1", "etc", "usr/share", "home/user/link", "home/user/deep/old"):
        (there / name).mkdir(parents=True)
    (there / "etc/hosts").write_text("mounted")
    (there / "etc/motd").write_text("deleted")
    (there / "home/user/text").mkdir()
    unpack(there, list(pack(str(tmp_path / "here"), 0.0)))
    assert (there / "etc/hosts").read_text() == "mounted"
    assert not (there / "etc/motd").exists()
    assert not (there / "usr").exists()
    assert (there / "proc/1").is_dir()
    assert seen(there / "home") == seen(tmp_path / "here/home")


def test_what_is_older_than_the_image_is_named_but_not_packed(tmp_path: Path) -> None:
    """Directories that nothing was written to lead nowhere."""
    make_tree(tmp_path / "here")
    there = tmp_path / "there"
    (there / "home/user").mkdir(parents=True)
    (there / "tmp").mkdir()
    (there / "home/user/of the image").touch()
    unpack(there, list(pack(str(tmp_path / "here"), (tmp_path / "here/home").stat().st_ctime + 1000)))
    assert [path.name for path in (there / "home/user").iterdir()] == ["of the image"]


def test_a_stream_that_breaks_off_is_told(tmp_path: Path) -> None:
    """Wherever it is cut, `finish` refuses."""
    make_tree(tmp_path / "here")
    stream = b"".join(pack(str(tmp_path / "here"), 0.0))
    for length in (0, 3, 100, len(stream) - 1):
        (tmp_path / f"there{length}/tmp").mkdir(parents=True)
        with pytest.raises(ValueError, match="whole"):
            unpack(tmp_path / f"there{length}", [stream[:length]])


HEADERS = st.fixed_dictionaries(
    {"k": st.sampled_from(["d", "f", "l", "h", "p", "w", "?", 1, None])},
    optional={
        "p": st.sampled_from(["/tmp/a", "/tmp/b", 1]), "m": st.integers(0, 0o7777), "u": st.just(0), "g": st.just(0),
        "t": st.integers(-10, 1 << 70), "s": st.integers(-5, 1 << 70), "o": st.integers(-5, 100),
        "l": st.integers(-5, 9), "n": st.lists(st.sampled_from(["a", "b"])), "to": st.sampled_from(["/tmp/a", 3]),
        "end": st.just(True),
    },
)  # fmt: skip


@given(st.lists(st.one_of(HEADERS, st.integers(), st.lists(st.none())), max_size=6), st.binary(max_size=20))
def test_nonsense_is_refused_as_nonsense(
    tmp_path_factory: pytest.TempPathFactory, headers: list[Any], tail: bytes
) -> None:
    """Any stream ends well or with an error that the route expects."""
    base = tmp_path_factory.mktemp("base")
    (base / "tmp").mkdir()
    raws = [json.dumps(header).encode() for header in headers]
    try:
        unpack(base, [b"".join(len(raw).to_bytes(4, "big") + raw for raw in raws) + tail])
    except (*NONSENSE, OSError):
        pass
