"""The login shell of the base template."""

import shutil
from pathlib import Path

import pytest

from firebrick.linux.process import run

PROFILE = Path(__file__).parents[3] / "templates/base/files/etc/profile"

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace to count processes")


async def test_profile_starts_no_process(tmp_path: Path) -> None:
    """Sourcing the template's /etc/profile forks nothing: every command of a user pays for it."""
    trace = tmp_path / "trace"
    argv = ["strace", "-f", "-e", "trace=clone,clone3,fork,vfork,execve", "-o", trace, "bash", "-c", f". {PROFILE}"]
    await run(argv)
    lines = trace.read_text().splitlines()
    assert len([line for line in lines if "execve(" in line]) == 1
    assert not [line for line in lines if "clone" in line or "fork(" in line]


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("/opt/bin:/usr/local/bin:/bin", "/opt/bin:/usr/local/bin:/bin"),
        ("/opt/bin", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin"),
        (None, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ],
)
async def test_profile_keeps_a_useful_path(given: str | None, seen: str) -> None:
    """A PATH that was given stays; one that lacks our programs, or none, is completed."""
    env = {} if given is None else {"PATH": given}
    done = await run(["/bin/bash", "-c", f". {PROFILE}; echo $PATH"], env=env)
    assert done.stdout.strip() == seen
