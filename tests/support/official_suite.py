"""Run the live tests of E2B's own Python SDK, unchanged, against an instance of ours: `./dev suite DIRECTORY`, and
`./dev lab suite DIRECTORY` against one on microVMs in an outer machine.

DIRECTORY is `packages/python-sdk` of a checkout of E2B's repository; nothing of it is kept here. Its tests run in
an environment of their own with the released package, over HTTP.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import official_suite_patience
from tests.support.environment import clean_environ
from tests.support.instance import Instance, instance
from tests.support.runtimes import missing_runtime
from tests.support.wait import SLOWNESS

RUNTIMES = ("firecracker", "gvisor", "container")
TEST_TIMEOUT_S = 30
"""As the suite's own `pytest.ini` has it."""
NEEDS = ("pytest", "pytest-xdist", "pytest-dotenv", "pytest-asyncio>=1.3", "pytest-timeout")
SELECTION = (
    "tests/sync/api_sync", "tests/sync/sandbox_sync", "tests/async/api_async", "tests/async/sandbox_async",
    "tests/shared",
)  # fmt: skip
"""Templates, volumes and secrets are not in this version."""


def main(argv: list[str]) -> int:
    source, rest = Path(argv[0]), argv[1:]
    status = 0
    with prepared(source) as place:
        for runtime in RUNTIMES:
            why = missing_runtime(runtime)
            if why:
                print(f"=== {runtime}: NOT RUN: {why}")
                continue
            print(f"=== {runtime}", flush=True)
            # Their tests make sandboxes of hot templates all the time, some in crowds.
            with instance(runtime=runtime, slot_count="64") as found:
                status = run(place, found, rest) or status
    return status


@contextmanager
def prepared(source: Path) -> Iterator[Path]:
    """The suite of the folder `source`, in a folder of its own with an environment of its own."""
    with tempfile.TemporaryDirectory(prefix="official-suite-", dir="/var/tmp") as scratch:
        place = Path(scratch)
        shutil.copytree(source / "tests", place / "tests")
        shutil.copy(source / "pytest.ini", place)
        shutil.copy(official_suite_patience.__file__, place)
        version = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
        _environment(place / "venv", os.environ.get("E2B_VERSION", version))
        yield place


def _environment(directory: Path, version: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"e2b=={version}", *NEEDS], check=True)


def run(place: Path, found: Instance, rest: list[str], *, slowness: float = SLOWNESS, at_once: int = 4) -> int:
    """pytest's status.

    Args:
        rest: its arguments; with no path among them, all live tests run.
        slowness: how much longer all that the suite waits for may take.
        at_once: how many tests run side by side; most have one sandbox, some four.
    """
    env = {key: value for key, value in clean_environ().items() if not key.startswith("PYTEST_")}
    env |= {
        "E2B_API_KEY": found.api_key, "E2B_API_URL": found.api_url, "E2B_SANDBOX_URL": found.sandbox_url,
        "NO_PROXY": "*", "SUITE_SLOWNESS": str(slowness),
    }  # fmt: skip
    chosen = rest if any(word.startswith("tests") for word in rest) else [*SELECTION, *rest]
    argv = [str(place / "venv" / "bin" / "python"), "-m", "pytest", "-q", "-n", str(at_once), "-p", "no:cacheprovider"]
    argv += ["-p", Path(official_suite_patience.__file__).stem, "-o", f"timeout={TEST_TIMEOUT_S * slowness}", *chosen]
    return subprocess.run(argv, cwd=place, env=env).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
