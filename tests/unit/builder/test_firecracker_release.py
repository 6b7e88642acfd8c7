"""A release is taken only with the programs that were pinned, and whatever else comes is told as what it is."""

import asyncio
import errno
import gzip
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from firebrick.builder import firecracker_release
from firebrick.builder.firecracker_release import (
    CHECKSUMS,
    PROGRAMS,
    RELEASE,
    check_architecture,
    fetch_archive,
    no_room,
    release_url,
    unpack_programs,
)
from firebrick.model.errors import Unavailable
from tests.lab import parts

X86 = "x86_64"
Reply = Callable[[str], list[bytes]]


def release(**programs: bytes) -> bytes:
    """An archive as upstream packs them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in programs.items():
            member = tarfile.TarInfo(f"release-v{RELEASE}-{X86}/{name}-v{RELEASE}-{X86}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@asynccontextmanager
async def server(reply: Reply) -> AsyncIterator[str]:
    """Answers each request with the pieces that `reply` makes for its path; an empty piece: it falls silent."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        for piece in reply(head.split()[1].decode()):
            if not piece:
                await over.wait()
            writer.write(piece)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        over.set()
        listening.close()
        await listening.wait_closed()


def answer(body: bytes, *, status: str = "200 OK", length: int | None = None, more: str = "") -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{more}Connection: close\r\n\r\n".encode() + body


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Programs of ours, pinned in place of the real ones."""
    programs = {name: f"#!{name}".encode() for name in PROGRAMS}
    sums = {name: hashlib.sha256(program).hexdigest() for name, program in programs.items()}
    monkeypatch.setattr(firecracker_release, "CHECKSUMS", {X86: sums})
    return programs


async def test_a_release_is_fetched_through_redirects(tmp_path: Path, pinned: dict[str, bytes]) -> None:
    """As upstream's host sends them, from one address to another."""
    archive = release(**pinned, extra=b"more is in it")

    def reply(path: str) -> list[bytes]:
        if path == "/stored":
            return [answer(archive)]
        return [answer(b"", status="302 Found", more="Location: /stored\r\n")]

    async with server(reply) as url:
        await fetch_archive(f"{url}/release.tgz", tmp_path / "archive")
    (tmp_path / "out").mkdir()
    unpack_programs(tmp_path / "archive", tmp_path / "out", X86)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == pinned


BROKEN: list[tuple[Reply, str]] = [
    (lambda path: [answer(b"gone", status="404 Not Found")], "the server answered 404"),
    (lambda path: [answer(b"", status="302 Found", more="Location: /again\r\n")], "the download failed"),
    (lambda path: [answer(b"half", length=8)], "the connection broke"),
    (lambda path: [answer(b"half", length=8), b""], "the server fell silent"),
    (lambda path: [b""], "the server fell silent"),
    (lambda path: [], "the connection broke"),
]


@pytest.mark.parametrize(("reply", "why"), BROKEN, ids=["404", "loop", "cut", "stall", "silent", "hung-up"])
async def test_what_breaks_on_the_way_is_told(tmp_path: Path, reply: Reply, why: str) -> None:
    """With what to do: fetch it elsewhere and give a path."""
    async with server(reply) as url:
        with pytest.raises(Unavailable, match=f"{why}.*--path"):
            await fetch_archive(f"{url}/release.tgz", tmp_path / "archive", idle_s=0.2)


async def test_a_server_that_trickles_holds_nobody(tmp_path: Path) -> None:
    """Each piece comes in time, the whole never: there is a deadline for that too."""

    def reply(path: str) -> list[bytes]:
        return [answer(b"x", length=9), b""]

    async with server(reply) as url:
        with pytest.raises(Unavailable, match=r"within 0\.3 s"):
            await fetch_archive(f"{url}/release.tgz", tmp_path / "archive", idle_s=30.0, total_s=0.3)


async def test_no_network_is_told(tmp_path: Path) -> None:
    """Nobody listens there."""
    async with server(lambda path: []) as url:
        pass
    with pytest.raises(Unavailable, match="cannot be reached"):
        await fetch_archive(f"{url}/release.tgz", tmp_path / "archive")


async def test_what_does_not_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firecracker_release, "_MAX_ARCHIVE_BYTES", 1000)
    async with server(lambda path: [answer(bytes(1001))]) as url:
        with pytest.raises(Unavailable, match="does not end"):
            await fetch_archive(f"{url}/release.tgz", tmp_path / "archive")


def test_a_changed_program_is_refused(tmp_path: Path) -> None:
    """The message says which, what was found, where to compare, and what to do; nothing is left behind."""
    (tmp_path / "archive").write_bytes(release(firecracker=b"changed", jailer=b"too"))
    (tmp_path / "out").mkdir()
    with pytest.raises(Unavailable, match=r"fetched firecracker .* not " + CHECKSUMS[X86]["firecracker"]) as caught:
        unpack_programs(tmp_path / "archive", tmp_path / "out", X86)
    assert f"{release_url(X86)}.sha256.txt" in caught.value.message
    assert not list((tmp_path / "out").iterdir())


def test_one_changed_program_is_enough(tmp_path: Path, pinned: dict[str, bytes]) -> None:
    (tmp_path / "archive").write_bytes(release(**(pinned | {"jailer": b"changed"})))
    (tmp_path / "out").mkdir()
    with pytest.raises(Unavailable, match="fetched jailer"):
        unpack_programs(tmp_path / "archive", tmp_path / "out", X86)
    assert not list((tmp_path / "out").iterdir())


WHOLE = release(firecracker=bytes(range(256)) * 64, jailer=b"x")


@pytest.mark.parametrize(
    "archive",
    [
        b"<html>", b"", release(firecracker=b"alone"), gzip.compress(b"no tar"), WHOLE[: len(WHOLE) // 2],
        WHOLE[:40] + b"\xff" * 20 + WHOLE[60:],
    ],
    ids=["html", "empty", "half", "no-tar", "truncated", "damaged"],
)  # fmt: skip
def test_what_is_no_release_is_told(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / "archive").write_bytes(archive)
    with pytest.raises(Unavailable, match="no release of Firecracker, or was cut short"):
        unpack_programs(tmp_path / "archive", tmp_path, X86)


def test_a_program_of_any_size_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that is small and holds much fills no memory."""
    monkeypatch.setattr(firecracker_release, "_MAX_PROGRAM_BYTES", 1000)
    (tmp_path / "archive").write_bytes(release(firecracker=bytes(1001), jailer=b""))
    with pytest.raises(Unavailable, match="no release"):
        unpack_programs(tmp_path / "archive", tmp_path, X86)


def test_other_processors_get_an_answer() -> None:
    """Which are pinned, which this is, and that other runtimes may work."""
    check_architecture(X86)
    with pytest.raises(Unavailable, match=r"on x86_64 only as yet; this machine is aarch64.*firebrick doctor"):
        check_architecture("aarch64")


def test_only_a_full_disk_is_told_as_one() -> None:
    full, other = OSError(errno.ENOSPC, "x"), OSError(errno.EACCES, "x")
    assert "no room" in str(no_room(full, Path("/data")))
    assert no_room(other, Path("/data")) is None


def test_every_pin_is_a_sha256_and_the_labs() -> None:
    """The lab's programs are those that users are given. (It has the sums in a file that decides what it is built
    from, and would be built anew if it took them from here.)"""
    for programs in CHECKSUMS.values():
        assert programs.keys() == set(PROGRAMS)
        assert all(len(bytes.fromhex(checksum)) == 32 for checksum in programs.values())
    assert CHECKSUMS[X86] == parts.FIRECRACKER_SHA256
