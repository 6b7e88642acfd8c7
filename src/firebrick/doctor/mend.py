"""Install what the doctor found missing, or say exactly how."""

import contextlib
import os
import shlex

from firebrick.doctor.doctor import Report
from firebrick.doctor.packages import APT_INSTALL, missing_packages
from firebrick.doctor.result import ProbeStatus
from firebrick.linux.process import CommandFailed, run
from firebrick.model.errors import Unavailable

_APT_TIMEOUT_S = 900.0
OWN_COMMAND = "firebrick"


async def mend(report: Report, *, run_them: bool) -> list[str]:
    """Run the mending commands of everything that is not ok; apt once for all packages.

    Args:
        run_them: False, or not root: nothing is run.

    Returns: the commands, as they can be pasted into a shell: run already, or for the user to run. Our own are always
        the user's to run.
    Raises: Unavailable — a package could not be installed. Other commands that fail leave their probe failing.
    """
    packages = missing_packages(report.results)
    install = [["apt-get", "update"], [*APT_INSTALL, *packages]] if packages else []
    others = [
        list(argv)
        for result in report.results
        if result.status is not ProbeStatus.OK
        for argv in result.mend
        if argv[: len(APT_INSTALL)] != APT_INSTALL and argv[0] != "sudo"
    ]
    if run_them and os.geteuid() == 0:
        await _install(install)
        for argv in others:
            # NOTE: `firebrick up` asks us to mend: it would bring the machine up within itself.
            if argv[0] == OWN_COMMAND:
                continue
            with contextlib.suppress(CommandFailed):
                await run(argv, check=False)
    return [shlex.join(argv) for argv in [*install, *others]]


async def _install(commands: list[list[str]]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l"}
    for argv in commands:
        # A third-party source that cannot be reached fails the update; the install tells if it mattered.
        matters = argv[1] != "update"
        try:
            await run(argv, env=environment, timeout_s=_APT_TIMEOUT_S, check=matters)
        except CommandFailed as exc:
            raise Unavailable(
                f"Packages could not be installed. Run `{shlex.join(argv)}` yourself and look at what it says.",
                detail=str(exc),
            ) from exc
