"""Before a test run, as root: what tests need and no package manager installs. `./dev test` calls it."""

import asyncio
import os
import shutil
import sys

from firebrick.builder.runsc_tool import install_runsc
from firebrick.model.errors import FirebrickError
from tests.lab.parts import PartMissing
from tests.support.firecracker import installed_tools
from tests.support.instance import CACHE


def main() -> None:
    """Into the tests' cache, where instances under test look for it; what is there is kept."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    if not shutil.which("runsc"):
        try:
            asyncio.run(install_runsc(CACHE / "tools" / "runsc", mirror=None))
        except FirebrickError as exc:
            sys.stderr.write(f"tests on gVisor are skipped: {exc.message}\n")
    try:
        asyncio.run(installed_tools())
    except (FirebrickError, PartMissing) as exc:
        sys.stderr.write(f"tests on microVMs are skipped: {exc}\n")


if __name__ == "__main__":
    main()
