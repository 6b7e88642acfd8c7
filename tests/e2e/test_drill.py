"""The fault matrix, a sample of it with one fault of each kind: `firebrick drill` finds nothing lost."""

import subprocess
import sys
import uuid

import pytest

from firebrick.cli.drill_faults import STEPS, all_faults
from tests.support.environment import clean_environ
from tests.support.instance import CACHE
from tests.support.leaks import RUN_MARK, marked_processes
from tests.support.runtimes import missing_runtime

KINDS = (
    "kill -9 of control", "kill -9 of node", "kill -9 of edge", "disk full", "reboot", "database locked",
    "idle connections",
)  # fmt: skip


def test_the_sample_has_one_of_each_kind() -> None:
    """A process killed in each operation, and each fault of the machine."""
    sample = [fault for fault in all_faults() if fault.is_sample]
    for kind in KINDS:
        assert any(kind in fault.name for fault in sample), kind
    killed_in = {fault.during.partition(":")[0].partition(",")[0] for fault in sample if "kill -9" in fault.name}
    assert killed_in == {operation.partition(",")[0] for operation in STEPS}


@pytest.mark.timeout(600)
def test_a_sample_of_faults_loses_nothing() -> None:
    """Whatever is killed, locked, filled or rebooted in the middle of whatever operation, nothing told is lost."""
    why = missing_runtime("container")
    if why:
        pytest.skip(why)
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [sys.executable, "-m", "firebrick.cli", "drill", "--sample", "--runtime", "container"],
        env=clean_environ() | {"FIREBRICK_DATA_DIR": str(CACHE), RUN_MARK: mark}, capture_output=True, text=True,
    )  # fmt: skip
    # Status 0 says too that its file system could be unmounted and its directory was empty.
    assert done.returncode == 0, done.stdout + done.stderr
    assert marked_processes(mark) == []
    count = sum(fault.is_sample for fault in all_faults())
    assert f"{count} faults" in done.stdout
    assert "0 with a loss" in done.stdout
    assert done.stdout.count("nothing") >= count, done.stdout
