"""Before a test run, as root: what tests need and no package manager installs. `./dev test` calls it."""

import asyncio
import os
import shutil
import sys

from firebrick.builder.runsc_tool import install_runsc
from firebrick.model.errors import FirebrickError
from tests.support.instance import CACHE


async def main() -> None:
    """gVisor's runsc into the tests' cache, where instances under test look for it. What is there is kept."""
    if os.geteuid() != 0 or shutil.which("runsc") or not shutil.which("apt-get"):
        return
    try:
        await install_runsc(CACHE / "tools" / "runsc", mirror=None)
    except FirebrickError as exc:
        sys.stderr.write(f"tests on gVisor are skipped: {exc.message}\n")


if __name__ == "__main__":
    asyncio.run(main())
