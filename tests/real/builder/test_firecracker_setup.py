"""`firebrick setup firecracker` with the real programs, from an archive as upstream packs it, over HTTP."""

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firebrick.builder.firecracker_release import RELEASE
from firebrick.builder.firecracker_tools import install_firecracker
from firebrick.linux.process import run
from firebrick.model.errors import Unavailable
from tests.support.firecracker import pinned_programs, release_archive

pytestmark = pytest.mark.needs_root


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Not on the test's output."""


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/release.tgz"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    stored = tmp_path / "stored"
    stored.mkdir()
    (stored / "release.tgz").write_bytes(release_archive(pinned_programs()))
    return stored


def silent(what: str, share: float) -> None:
    """Nobody watches."""


async def test_the_pinned_release_is_set_up(tmp_path: Path, archive: Path) -> None:
    """Its two programs start, kernel and initramfs stand beside them, and the second time nothing is fetched."""
    with serving(archive) as url:
        tools = await install_firecracker(tmp_path / "tools", path=None, mirror=None, tell=silent, release=url)
    for program in (tools.firecracker, tools.jailer):
        assert f"v{RELEASE}" in (await run([program, "--version"])).stdout
    assert tools.kernel.read_bytes()[:4] == b"\x7fELF"
    assert tools.initramfs.read_bytes()[:6] == b"070701"
    assert {path.name for path in tmp_path.iterdir()} == {"stored", "tools"}
    again = await install_firecracker(tmp_path / "tools", path=None, mirror=None, tell=silent, release=url)
    assert again == tools


@pytest.mark.parametrize("size_kib", [1024, 6144], ids=["archive", "programs"])
async def test_a_full_disk_is_told_as_one(tmp_path: Path, archive: Path, size_kib: int) -> None:
    """Whether the archive does not fit or what is in it: the message says so, and nothing is left behind."""
    small = tmp_path / "small"
    small.mkdir()
    await run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", small])
    try:
        with serving(archive) as url, pytest.raises(Unavailable, match=f"no room for Firecracker in {small}"):
            await install_firecracker(small / "tools", path=None, mirror=None, tell=silent, release=url)
        assert not list(small.iterdir())
    finally:
        await run(["umount", small])


async def test_a_former_set_up_stays_where_a_new_one_fails(tmp_path: Path, archive: Path) -> None:
    """What runs on it goes on, and so does whoever starts from it."""
    before = tmp_path / "tools"
    before.mkdir()
    (before / "firecracker").write_text("former")
    (archive / "release.tgz").write_bytes(b"cut")
    with serving(archive) as url, pytest.raises(Unavailable, match="cut short"):
        await install_firecracker(before, path=None, mirror=None, tell=silent, release=url)
    assert (before / "firecracker").read_text() == "former"
    assert {path.name for path in tmp_path.iterdir()} == {"stored", "tools"}
