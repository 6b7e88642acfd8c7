"""The fault matrix, a sample of it: `firebrick drill` finds nothing lost."""

import subprocess
import sys

import pytest

from tests.support.environment import clean_environ
from tests.support.instance import CACHE
from tests.support.runtimes import missing_runtime


@pytest.mark.timeout(600)
def test_a_sample_of_faults_loses_nothing() -> None:
    """A process that dies in the middle of a create or a kill, and a locked database, lose nothing that was told."""
    why = missing_runtime("container")
    if why:
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, "-m", "firebrick.cli", "drill", "--sample", "--runtime", "container"],
        env=clean_environ() | {"FIREBRICK_DATA_DIR": str(CACHE)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 with a loss" in done.stdout
    assert done.stdout.count("nothing") >= 5
