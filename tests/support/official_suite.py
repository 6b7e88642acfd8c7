"""Run the live tests of E2B's own Python SDK, unchanged, against an instance of ours: `./dev suite DIRECTORY`.

DIRECTORY is `packages/python-sdk` of a checkout of E2B's repository; nothing of it is kept here. Its tests run in
an environment of their own with the released package, over HTTP.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.support.instance import Instance, instance
from tests.support.runtimes import missing_runtime

RUNTIMES = ("gvisor", "container")
NEEDS = ("pytest", "pytest-xdist", "pytest-dotenv", "pytest-asyncio>=1.3", "pytest-timeout")
SELECTION = (
    "tests/sync/api_sync", "tests/sync/sandbox_sync", "tests/async/api_async", "tests/async/sandbox_async",
    "tests/shared",
)  # fmt: skip
"""Templates, volumes and secrets are not in this version."""


def main(argv: list[str]) -> int:
    source, rest = Path(argv[0]).resolve(), argv[1:]
    status = 0
    with tempfile.TemporaryDirectory(prefix="official-suite-", dir="/var/tmp") as scratch:
        place = Path(scratch)
        shutil.copytree(source / "tests", place / "tests")
        shutil.copy(source / "pytest.ini", place)
        version = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
        python = _environment(place / "venv", os.environ.get("E2B_VERSION", version))
        for runtime in RUNTIMES:
            why = missing_runtime(runtime)
            if why:
                print(f"=== {runtime}: NOT RUN: {why}")
                continue
            print(f"=== {runtime}", flush=True)
            # Their tests make sandboxes of hot templates all the time, some in crowds.
            with instance(runtime=runtime, slot_count="64") as found:
                status = _run(python, place, found, rest) or status
    return status


def _environment(directory: Path, version: str) -> Path:
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"e2b=={version}", *NEEDS], check=True)
    return python


def _run(python: Path, place: Path, found: Instance, rest: list[str]) -> int:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("E2B_", "FIREBRICK_", "PYTEST_"))}
    env |= {
        "E2B_API_KEY": found.api_key, "E2B_API_URL": found.api_url, "E2B_SANDBOX_URL": found.sandbox_url,
        "NO_PROXY": "*",
    }  # fmt: skip
    chosen = rest if any(word.startswith("tests") for word in rest) else [*SELECTION, *rest]
    argv = [str(python), "-m", "pytest", "-q", "-n", "4", "-p", "no:cacheprovider", *chosen]
    return subprocess.run(argv, cwd=place, env=env).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
