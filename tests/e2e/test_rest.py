"""Pause, resume, snapshot and fork through the official SDK, on real runtimes."""

import pytest
from e2b import Sandbox
from e2b.exceptions import SandboxException

from tests.support.instance import Instance
from tests.support.wait import LIFETIME_S, wait_for_sync


def test_a_paused_sandbox_comes_back_as_it_was(running: Instance, box: Sandbox) -> None:
    """The file, the process with its memory, and the handle's token; a command is served at once."""
    box.files.write("/home/user/note", "kept")
    counter = box.commands.run("i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.05; done", background=True)
    wait_for_sync(lambda: box.files.exists("/tmp/count"))
    assert box.pause()
    again = Sandbox.connect(box.sandbox_id, timeout=LIFETIME_S, **running.sdk)
    before = int(again.files.read("/tmp/count"))
    assert again.files.read("/home/user/note") == "kept"
    assert counter.pid in [process.pid for process in again.commands.list()]
    wait_for_sync(lambda: int(again.files.read("/tmp/count").strip() or 0) > before)
    assert box.commands.run("echo same handle").stdout == "same handle\n"


def test_a_pause_without_memory_keeps_the_files(running: Instance, box: Sandbox) -> None:
    """What was written and what was deleted, with owners; processes start anew."""
    box.commands.run("echo kept > note; sudo rm -r /usr/share/doc; sudo touch /etc/mine; sleep 600 &", background=True)
    wait_for_sync(lambda: box.files.exists("/etc/mine"))
    assert box.pause(keep_memory=False)
    again = Sandbox.connect(box.sandbox_id, timeout=LIFETIME_S, **running.sdk)
    assert again.files.read("/home/user/note") == "kept\n"
    assert not again.files.exists("/usr/share/doc")
    assert again.commands.run("stat -c %U /etc/mine note").stdout.split() == ["root", "user"]
    assert again.commands.list() == []


def test_a_snapshot_starts_independent_sandboxes(running: Instance, box: Sandbox) -> None:
    """Two from one snapshot, which do not see each other; the source runs on."""
    box.files.write("/home/user/note", "before")
    snapshot = box.create_snapshot()
    box.files.write("/home/user/note", "after")
    try:
        made = [Sandbox.create(snapshot.snapshot_id, timeout=LIFETIME_S, **running.sdk) for _ in range(2)]
        try:
            made[0].files.write("/home/user/note", "mine")
            assert [sandbox.files.read("/home/user/note") for sandbox in made] == ["mine", "before"]
            assert box.files.read("/home/user/note") == "after"
        finally:
            for sandbox in made:
                sandbox.kill()
    finally:
        assert Sandbox.delete_snapshot(snapshot.snapshot_id, **running.sdk)
    with pytest.raises(SandboxException, match="not found"):
        Sandbox.create(snapshot.snapshot_id, timeout=LIFETIME_S, **running.sdk)


def test_a_fork_has_the_files_of_its_source(box: Sandbox) -> None:
    """Three at once, each its own."""
    box.files.write("/home/user/note", "shared")
    forks = [fork for fork in box.fork(timeout=LIFETIME_S, count=3) if not isinstance(fork, Exception)]
    try:
        assert len(forks) == 3
        for number, fork in enumerate(forks):
            assert fork.files.read("/home/user/note") == "shared"
            fork.files.write("/home/user/note", str(number))
        assert [fork.files.read("/home/user/note") for fork in forks] == ["0", "1", "2"]
        assert box.files.read("/home/user/note") == "shared"
    finally:
        for fork in forks:
            fork.kill()
