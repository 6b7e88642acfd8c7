"""A snapshot goes from one whole instance to another, by the command line, and the official client creates from it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import Sandbox

from tests.support.instance import Instance, instance

PLACES = (0, 60, 1000, 100_000)
"""Where an archive is cut or changed: its magic, head, list of chunks, and chunks."""


pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def there(running: Instance) -> Iterator[Instance]:
    """A second instance that has nothing in common with the first but the template's build."""
    runtime = running.env.get("FIREBRICK_RUNTIME", "firecracker")
    if runtime == "firecracker":
        pytest.skip("NOT RUN: tests/lab/test_moving.py has two machines for it")
    if runtime == "gvisor" and "FIREBRICK_TEST_NIGHTLY" not in os.environ:
        pytest.skip("NOT RUN: nightly, beside container")
    with instance(runtime=runtime) as found:
        yield found


def test_a_snapshot_goes_to_another_instance(running: Instance, there: Instance, tmp_path: Path) -> None:
    """By a file and by a pipe. Whoever made it must be known there, or the operator says so; one that was cut or
    changed leaves nothing. An instance takes its own with a key."""
    here, file = running, tmp_path / "saved.snapshot"
    with Sandbox.create(timeout=120, **here.sdk) as box:
        box.files.write("/home/user/kept", "moved")
        box.commands.run("chmod 600 /home/user/kept && head -c 3000000 /dev/urandom > /home/user/large")
        sum_here = box.commands.run("sha256sum < /home/user/large").stdout
        made = box.create_snapshot(name="saved:v1").snapshot_id
    here.firebrick("snapshot", "export", made, str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [file.name]
    _refuses(there, file.read_bytes())

    _pipe(here, made, there)
    with Sandbox.create("saved:v1", timeout=120, **there.sdk) as box:
        assert box.files.read("/home/user/kept") == "moved"
        assert box.commands.run("stat -c '%a %U' /home/user/kept").stdout.strip() == "600 user"
        assert box.commands.run("sha256sum < /home/user/large").stdout == sum_here
        assert box.commands.run("touch /home/user/new && sudo touch /root/new").exit_code == 0

    own = here.api("POST", "/snapshots/archive", content=file.read_bytes(), params={"name": "own"})
    assert (own.status_code, own.json()["snapshotID"]) == (201, "default/own:default")
    for where, name in ((there, made), (here, made), (here, "default/own")):
        assert Sandbox.delete_snapshot(name, **where.sdk) is True


def _refuses(there: Instance, whole: bytes) -> None:
    """Without the operator's word, and with it what is cut or changed; nothing of it is left."""
    refused = there.api("POST", "/snapshots/archive", content=whole)
    assert (refused.status_code, "not sealed by an instance" in refused.json()["message"]) == (403, True)
    for place in PLACES:
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            broken = there.api("POST", "/snapshots/archive", content=damaged, headers=_operator(there))
            assert (broken.status_code, "Nothing was imported." in broken.json()["message"]) == (400, True)
    assert there.api("GET", "/snapshots").json() == []
    assert not [*there.data_dir.glob("node/snapshots/*/*"), *there.data_dir.glob("node/blobs/chunks/*")]


def _operator(there: Instance) -> dict[str, str]:
    token = {"X-Admin-Token": (there.data_dir / "admin-token").read_text().strip()}
    (team,) = there.api("GET", "/admin/teams", headers=token).json()
    return token | {"X-Team-ID": team["teamID"]}


def _pipe(here: Instance, snapshot: str, there: Instance) -> None:
    """`export | import`, as with ssh between them."""
    firebrick = [sys.executable, "-m", "firebrick.cli", "snapshot"]
    with subprocess.Popen([*firebrick, "export", snapshot, "-"], env=here.env, stdout=subprocess.PIPE) as giving:
        taking = subprocess.run(
            [*firebrick, "import", "-", "--trust"],
            env=there.env, stdin=giving.stdout, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (giving.returncode, taking.returncode) == (0, 0), taking.stderr
    assert taking.stdout.strip() == "default/saved:v1"
