"""The README's program runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.instance import Instance
from tests.support.wait import SLOWNESS

README = Path(__file__).parents[2] / "README.md"


def test_program_of_the_readme(running: Instance) -> None:
    """The Python program of the README prints what it says, with the unpatched official package."""
    program = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert program
    done = subprocess.run(
        [sys.executable, "-c", program.group(1)], env=running.env, capture_output=True, text=True, timeout=60 * SLOWNESS
    )
    assert done.returncode == 0, done.stderr
    uname, identity, answer, _, last = done.stdout.splitlines()
    assert uname.startswith("Linux")
    assert identity.startswith("uid=1000(user)")
    assert answer == "42"
    assert last.startswith("hello 8000-i")
