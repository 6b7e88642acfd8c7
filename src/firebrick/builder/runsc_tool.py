"""Get a runsc: from Debian's packages, which carry it as one static binary.

Debian trixie has a release with the systrap platform (about twice as fast as ptrace at system calls); its binary
runs on older Debians and Ubuntus too, so it is fetched and unpacked rather than installed. A machine whose apt
knows no Debian mirror takes its own distribution's package.
"""

import asyncio
import os
import platform
import shutil
import tempfile
from pathlib import Path

from firebrick.builder.apt_sources import carried_options, os_release, suite_sources
from firebrick.linux.process import CommandFailed, run
from firebrick.log import get_log
from firebrick.model.errors import Unavailable

SUITE = "trixie"
PACKAGE = "runsc"
DOWNLOAD_TIMEOUT_S = 300.0

log = get_log("builder")


async def install_runsc(target: Path, *, mirror: str | None) -> Path:
    """Make `target` a runsc that says its version; what is there already is kept.

    Args:
        mirror: a Debian mirror; None: the machine's own.

    Raises: Unavailable — none is to be had; the message says how to give one.
    Effects: `target`, by rename; a temporary directory that is gone afterwards. Idempotent.
    """
    if await _works(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".runsc.", dir=target.parent))
    try:
        # apt fetches as a user of its own, who must reach the place.
        scratch.chmod(0o755)
        found = await _fetch(scratch, mirror)
        if not await _works(found):
            raise CommandFailed([str(found), "--version"], None, "the fetched runsc does not start here")
        found.chmod(0o755)
        found.rename(target)
    except (CommandFailed, OSError) as exc:
        raise Unavailable(
            "gVisor's runsc could not be fetched from Debian's packages. Install it yourself and give its path in "
            "the setting 'runsc_path', or use the runtime 'container'.",
            detail=str(exc),
        ) from exc
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
    log.info("runsc.installed", target=str(target))
    return target


async def _fetch(scratch: Path, mirror: str | None) -> Path:
    """Download and unpack; the path of the binary."""
    sources = [f"deb {mirror} {SUITE} main"] if mirror else await asyncio.to_thread(_machine_sources)
    options = await asyncio.to_thread(_apt_options, scratch, sources) if sources else []
    dump = await run(["apt-config", "dump", "Acquire"])
    for option in carried_options(dump.stdout):
        name, _, value = option.partition(" ")
        options.append(f"-o={name}={value.strip().strip(chr(34))}")
    await run(["apt-get", *options, "update"], timeout_s=DOWNLOAD_TIMEOUT_S)
    await run(["apt-get", *options, "download", PACKAGE], cwd=scratch, timeout_s=DOWNLOAD_TIMEOUT_S)
    package = next(scratch.glob("*.deb"))
    await run(["dpkg", "-x", package, scratch / "unpacked"])
    return scratch / "unpacked" / "usr" / "bin" / "runsc"


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


def _machine_sources() -> list[str]:
    """The machine's own Debian mirror, asked for our suite; nothing when it has none."""
    release = os_release(Path("/etc/os-release").read_text())
    if release.get("ID") != "debian":
        return []
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    texts = [(place.name, place.read_text(errors="replace")) for place in places if place.is_file()]
    host_suite = release.get("VERSION_CODENAME", "")
    return [line for line in suite_sources(texts, host_suite=host_suite, suite=SUITE) if f" {SUITE} " in line]


async def _works(program: Path) -> bool:
    if not os.access(program, os.X_OK):
        return False
    try:
        await run([program, "--version"], timeout_s=10.0)
    except CommandFailed:
        return False
    return True
