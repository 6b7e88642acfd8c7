"""The qemu that outer machines run in: this machine's or, where that one is too old to be trusted, a newer one.

Before release 8.1 a processor could go on executing what another one had just overwritten: it was translated while it
was written (deba78709ae8; https://lore.kernel.org/all/20230808072835.GT7636@redhat.com/). Linux overwrites its
own code for a moment with a breakpoint when it switches something on or off, as when microVMs start and
end; a machine, or a guest in it, then stood still in that breakpoint, or ended.
"""

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from firebrick.builder.apt_sources import os_release, suite_sources
from firebrick.builder.debian_package import open_source
from firebrick.linux.process import CommandFailed

PROGRAM = "qemu-system-x86_64"
SOUND = (8, 1)
PACKAGES = ("qemu-system-x86", "qemu-system-data")
FIRMWARE = ("/usr/share/seabios", "/usr/lib/ipxe/qemu")
"""Of packages that this machine's qemu depends on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """A qemu. Fields: words — the start of its command line; version — all that it says of itself."""

    words: tuple[str, ...]
    version: str

    @property
    def is_sound(self) -> bool:
        return release(self.version) >= SOUND


def release(version: str) -> tuple[int, int]:
    """The release in what `--version` prints; (0, 0) where it has none."""
    found = re.search(r"version (\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def backports_mirror(os_text: str, texts: list[tuple[str, str]]) -> tuple[str, str] | None:
    """(mirror, suite) of newer packages for this Debian, from its os-release and apt sources; None where it is none."""
    about = os_release(os_text)
    if about.get("ID") != "debian" or not (codename := about.get("VERSION_CODENAME")):
        return None
    suite = f"{codename}-backports"
    lines = (line.split() for line in suite_sources(texts, host_suite=codename, suite=suite))
    return next(((words[-3], suite) for words in lines if words[-2] == suite), None)


def emulator(cache: Path) -> Emulator:
    """The one to use here. The caller holds the cache's lock.

    Effects: where this machine's is too old, a folder in `cache` with Debian's newer one, unpacked and not installed.
    Where none can be had, the machine's own is used all the same, and that is told.
    """
    own = _emulator(PROGRAM)
    if own.is_sound:
        return own
    folder = cache / "qemu"
    if not folder.exists():
        making = Path(tempfile.mkdtemp(prefix="making-", dir=cache))
        try:
            asyncio.run(_fetch(making))
            making.rename(folder)
        except (CommandFailed, OSError) as exc:
            shutil.rmtree(making, ignore_errors=True)
            told = f"{own.version.splitlines()[0]} may stand still in the middle of a test, and no newer one was found"
            print(f"lab: {told} ({exc}); install qemu {'.'.join(map(str, SOUND))} or later", file=sys.stderr)
            return own
    share = folder / "usr/share/qemu"
    places = (word for place in (share, *FIRMWARE) for word in ("-L", place))
    return _emulator(str(folder / "usr/bin" / PROGRAM), *places)


async def _fetch(target: Path) -> None:
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    texts = [(place.name, place.read_text(errors="replace")) for place in places if place.is_file()]
    found = backports_mirror(Path("/etc/os-release").read_text(), texts)
    if found is None:
        raise FileNotFoundError("this machine knows no Debian mirror with newer packages")
    mirror, suite = found
    with tempfile.TemporaryDirectory(prefix="qemu-") as scratch:
        source = await open_source(Path(scratch), suite, mirror=mirror)
        for package in PACKAGES:
            shutil.copytree(await source.unpack(package), target, symlinks=True, dirs_exist_ok=True)
    if not _emulator(str(target / "usr/bin" / PROGRAM)).is_sound:
        raise FileNotFoundError(f"the {PROGRAM} of {suite} does not start here")


def _emulator(program: str, *options: object) -> Emulator:
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    return Emulator(words=(program, *map(str, options)), version=done.stdout)
