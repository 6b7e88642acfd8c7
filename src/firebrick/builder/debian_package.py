"""Fetch single Debian packages and unpack them, without installing anything.

The machine's own mirror is asked, if it is a Debian machine's; its apt settings are used but not changed.
"""

import asyncio
import platform
from dataclasses import dataclass
from pathlib import Path

from firebrick.builder.apt_sources import carried_options, os_release, suite_sources
from firebrick.linux.process import CommandFailed, run

DOWNLOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSource:
    """An apt of one suite, with its lists fresh. All of it is kept in `scratch`, which is the caller's to remove."""

    scratch: Path
    options: tuple[str, ...]

    async def unpack(self, package: str) -> Path:
        """Download a package and unpack it; the directory. Raises CommandFailed, OSError."""
        place = self.scratch / package
        place.mkdir()
        place.chmod(0o755)
        await run(["apt-get", *self.options, "download", package], cwd=place, timeout_s=DOWNLOAD_TIMEOUT_S)
        archive = next(place.glob("*.deb"), None)
        if archive is None:
            raise CommandFailed(["apt-get", "download", package], 0, "no package came")
        await run(["dpkg", "-x", archive, place / "unpacked"])
        return place / "unpacked"

    async def first_dependency(self, package: str, prefix: str) -> str:
        """The package that this one stands for, such as the newest kernel. Raises CommandFailed."""
        argv = ["apt-cache", *self.options, "depends", package]
        said = await run(argv)
        for line in said.stdout.splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and name.startswith(prefix):
                return name
        raise CommandFailed(argv, 0, f"it needs no {prefix}…: {said.stdout}")


async def open_source(scratch: Path, suite: str, *, mirror: str | None) -> PackageSource:
    """Make an apt ready that knows `suite`.

    Args:
        mirror: a Debian mirror; None: the machine's own, and where it has none whatever its apt knows.

    Raises: CommandFailed, OSError.
    """
    # apt fetches as a user of its own, who must reach the place.
    scratch.chmod(0o755)
    sources = [f"deb {mirror} {suite} main"] if mirror else await asyncio.to_thread(_machine_sources, suite)
    options = await asyncio.to_thread(_apt_options, scratch, sources) if sources else []
    dump = await run(["apt-config", "dump", "Acquire"])
    for option in carried_options(dump.stdout):
        name, _, value = option.partition(" ")
        options.append(f"-o={name}={value.strip().strip(chr(34))}")
    await run(["apt-get", *options, "update"], timeout_s=DOWNLOAD_TIMEOUT_S)
    return PackageSource(scratch=scratch, options=tuple(options))


def _apt_options(scratch: Path, sources: list[str]) -> list[str]:
    """An apt that sees these sources only and writes nothing outside `scratch`."""
    for name in ("lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    (scratch / "sources.list").write_text("\n".join(sources) + "\n")
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return [
        f"-o=Dir::Etc::SourceList={scratch / 'sources.list'}",
        "-o=Dir::Etc::SourceParts=-",
        f"-o=Dir::State::Lists={scratch / 'lists'}",
        f"-o=Dir::Cache={scratch / 'cache'}",
        f"-o=APT::Architecture={architecture}",
        # There may be no such user in a minimal system; packages are checked by signature either way.
        "-o=APT::Sandbox::User=root",
    ]


def _machine_sources(suite: str) -> list[str]:
    """The machine's own Debian mirror, asked for our suite; nothing when it has none."""
    release = os_release(Path("/etc/os-release").read_text())
    if release.get("ID") != "debian":
        return []
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    texts = [(place.name, place.read_text(errors="replace")) for place in places if place.is_file()]
    host_suite = release.get("VERSION_CODENAME", "")
    return [line for line in suite_sources(texts, host_suite=host_suite, suite=suite) if f" {suite}" in line]
