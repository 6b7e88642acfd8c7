"""A microVM's saved memory goes to another computer and goes on there: two outer machines, each with an instance."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox
from e2b.exceptions import SandboxException

from tests.lab import parts
from tests.lab.fleet import Fleet, fleet
from tests.lab.outer import Outer
from tests.lab.whole import DATA_DIR, fill_shelf, whole_instance
from tests.support.wait import wait_for_sync

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_lab, pytest.mark.nightly, pytest.mark.timeout(7200)]

TIMEOUT_S, LIFETIME_S = 1800, 7200
NAME = "default/counting:default"
COUNTER = "n=0; while :; do n=$((n+1)); echo $n $$ >> /home/user/counted; sleep 1; done"
OTHER_PROCESSOR = 's/"vendor": "[A-Za-z]*"/"vendor": "GenuineOther"/'


@pytest.fixture(scope="module")
def machines() -> Iterator[Fleet]:
    """Two of them."""
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: needs root (run the tests with sudo)")
    fill_shelf()
    with fleet(parts.CACHE / "up" / f"moving-{uuid.uuid4().hex[:8]}", count=2, memory_mib=2560) as found:
        yield found


def test_processes_go_on_in_another_computer(machines: Fleet, tmp_path: Path) -> None:
    """A counter that ran when the snapshot was taken counts on in the second machine, from where it was; where the
    memory cannot go on, a create is refused with the reason and starts from the disk when asked."""
    first, second = machines.outers
    with whole_instance(first) as here, whole_instance(second) as there:
        options: dict[str, Any] = {"request_timeout": TIMEOUT_S}
        box = Sandbox.create(timeout=LIFETIME_S, **here.sdk | options)
        box.commands.run(COUNTER, background=True, timeout=0)
        wait_for_sync(lambda: box.files.exists("/home/user/counted"), timeout_s=600)
        made = box.create_snapshot(name="counting").snapshot_id
        counted = len(_counted(box))
        assert box.kill() is True

        archive = tmp_path / "counting.snapshot"
        here.firebrick("snapshot", "export", made, str(archive), timeout_s=TIMEOUT_S)
        print(f"the archive has {archive.stat().st_size} bytes")
        env = there.env | {"FIREBRICK_ADMIN_TOKEN": second.channel().shell(f"cat {DATA_DIR}/admin-token").strip()}
        operator = replace(there, env=env)
        brought = operator.firebrick("snapshot", "import", "--trust", str(archive), timeout_s=TIMEOUT_S)
        assert (brought.stdout.strip(), brought.stderr) == (NAME, "")

        again = Sandbox.create(NAME, timeout=LIFETIME_S, **there.sdk | options)
        wait_for_sync(lambda: len(_counted(again)) > counted + 5, timeout_s=600)
        lines = _counted(again)
        assert [count for count, _ in lines] == list(range(1, len(lines) + 1)), "it began anew"
        assert len({pid for _, pid in lines}) == 1, "it is another process"
        clock = int(again.commands.run("date +%s").stdout)
        assert abs(clock - int(second.channel().shell("date +%s"))) < 60
        assert again.kill() is True
        _refused_elsewhere(second, there.sdk | options)


def _counted(box: Sandbox) -> list[tuple[int, int]]:
    """(count, process) of each line."""
    lines = box.files.read("/home/user/counted").splitlines()
    return [(int(count), int(pid)) for count, pid in map(str.split, lines)]


def _refused_elsewhere(second: Outer, options: dict[str, Any]) -> None:
    """The second machine's memory is changed to be of another processor."""
    second.channel().shell(f"sed -i '{OTHER_PROCESSOR}' {DATA_DIR}/node/snapshots/disks/*/memory/facts.json")
    with pytest.raises(SandboxException, match="processor"):
        Sandbox.create(NAME, timeout=LIFETIME_S, **options)
    box = Sandbox.create(NAME, timeout=LIFETIME_S, metadata={"firebrick.memory": "false"}, **options)
    counted = len(_counted(box))
    assert counted > 0
    assert len(_counted(box)) == counted
    assert box.kill() is True
