"""Get a runsc: from Debian's packages, which carry it as one static binary.

Debian trixie has a release with the systrap platform (about twice as fast as ptrace at system calls); its binary
runs on older Debians and Ubuntus too, so it is fetched and unpacked rather than installed. A machine whose apt
knows no Debian mirror takes its own distribution's package.
"""

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

from firebrick.builder.debian_package import open_source
from firebrick.linux.process import CommandFailed, run
from firebrick.log import get_log
from firebrick.model.errors import Unavailable

SUITE = "trixie"
PACKAGE = "runsc"

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
    source = await open_source(scratch, SUITE, mirror=mirror)
    return (await source.unpack(PACKAGE)) / "usr" / "bin" / "runsc"


async def _works(program: Path) -> bool:
    if not os.access(program, os.X_OK):
        return False
    try:
        await run([program, "--version"], timeout_s=10.0)
    except CommandFailed:
        return False
    return True
