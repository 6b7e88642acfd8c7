"""Pause, resume, snapshots, forks and the grace bin, through the official SDK and the CLI, on each runtime."""

from typing import Any

from e2b import Sandbox

from tests.support.instance import Instance
from tests.support.wait import LIFETIME_S, SLOWNESS, wait_for_sync


def detail(running: Instance, box: Sandbox) -> dict[str, Any]:
    answer: dict[str, Any] = running.api("GET", f"/sandboxes/{box.sandbox_id}").json()
    return answer


def state(box: Sandbox) -> str:
    return box.get_info().state.value


def test_a_pause_keeps_what_it_says(running: Instance, box: Sandbox) -> None:
    """Files, variables and the handle survive a pause; processes do exactly if the API says that memory was kept."""
    box.files.write("/home/user/mark", "kept")
    handle = box.commands.run("sleep 1000", background=True)
    assert box.pause() is True
    assert (box.is_running(), state(box)) == (False, "paused")
    assert box.pause() is False
    keeps_memory = detail(running, box)["keepsMemory"]
    Sandbox.connect(box.sandbox_id, **running.sdk)
    assert (box.is_running(), state(box)) == (True, "running")
    assert box.files.read("/home/user/mark") == "kept"
    assert (handle.pid in {item.pid for item in box.commands.list()}) is keeps_memory


def test_a_pause_of_the_files_ends_the_processes(running: Instance, box: Sandbox) -> None:
    """`mode="filesystem"` keeps files, ends processes, and says so; a kept memory is given up by a cold connect."""
    box.files.write("/home/user/mark", "kept")
    for mode, on_resume in (("filesystem", "restore"), ("full", "reboot")):
        box.commands.run("sleep 1000", background=True)
        assert box.pause(mode=mode) is True
        if mode == "filesystem":
            told = detail(running, box)
            assert (told["keepsMemory"], told["pauseMode"]) == (False, "filesystem")
        box.connect(on_resume=on_resume)
        assert box.files.read("/home/user/mark") == "kept"
        assert box.commands.list() == []


def test_what_comes_from_a_snapshot_is_its_own(running: Instance, box: Sandbox) -> None:
    """Sandboxes from a snapshot and forks have the files of that moment, and change without one another."""
    box.files.write("/home/user/mark", "then")
    snapshot = box.create_snapshot(name="e2e-snap")
    assert snapshot.snapshot_id == "default/e2e-snap:default"
    box.files.write("/home/user/mark", "now")
    children = [Sandbox.create("e2e-snap", timeout=LIFETIME_S, **running.sdk) for _ in range(2)]
    forks = [item for item in box.fork(count=2, timeout=LIFETIME_S) if isinstance(item, Sandbox)]
    try:
        assert [child.files.read("/home/user/mark") for child in children] == ["then", "then"]
        assert [fork.files.read("/home/user/mark") for fork in forks] == ["now", "now"]
        children[0].files.write("/home/user/mark", "mine")
        assert children[1].files.read("/home/user/mark") == "then"
        assert box.files.read("/home/user/mark") == "now"
        assert len({item.sandbox_id for item in (box, *children, *forks)}) == 5
        assert [item.snapshot_id for item in Sandbox.list_snapshots(**running.sdk).next_items()] == [
            snapshot.snapshot_id
        ]
        assert Sandbox.delete_snapshot(snapshot.snapshot_id, **running.sdk) is True
        assert Sandbox.delete_snapshot(snapshot.snapshot_id, **running.sdk) is False
        assert children[1].files.read("/home/user/mark") == "then"
    finally:
        for item in (*children, *forks):
            item.kill()


def test_a_timeout_may_pause(running: Instance) -> None:
    """With on_timeout pause a sandbox is paused at its end; connect brings it back with its files."""
    with Sandbox.create(timeout=int(2 * SLOWNESS), lifecycle={"on_timeout": "pause"}, **running.sdk) as box:
        box.files.write("/home/user/mark", "kept")
        wait_for_sync(lambda: state(box) == "paused")
        box.connect(timeout=LIFETIME_S)
        assert box.files.read("/home/user/mark") == "kept"
        assert box.get_info().lifecycle["on_timeout"] == "pause"


def test_a_timeout_can_be_taken_back(running: Instance) -> None:
    """What a timeout ended is recovered by the command line, with its files."""
    box = Sandbox.create(timeout=int(2 * SLOWNESS), **running.sdk)
    box.files.write("/home/user/mark", "kept")
    wait_for_sync(lambda: not box.is_running())
    wait_for_sync(lambda: running.firebrick("sandbox", "recover", box.sandbox_id, check=False).returncode == 0)
    assert detail(running, box)["keepsMemory"] is False
    box.connect(timeout=LIFETIME_S)
    assert box.files.read("/home/user/mark") == "kept"
    box.kill()


def test_commands_of_the_command_line(running: Instance, box: Sandbox) -> None:
    """pause, resume, snapshot, snapshots and fork print ids, as docker's commands do."""
    box.files.write("/home/user/mark", "kept")
    assert running.firebrick("sandbox", "pause", box.sandbox_id).stdout.strip() == box.sandbox_id
    assert "paused" in running.firebrick("sandbox", "list").stdout
    again = running.firebrick("sandbox", "pause", box.sandbox_id, check=False)
    assert (again.returncode, "already paused" in again.stderr) == (1, True)
    assert running.firebrick("sandbox", "resume", box.sandbox_id).stdout.strip() == box.sandbox_id
    name = running.firebrick("sandbox", "snapshot", box.sandbox_id, "by-hand:v1").stdout.strip()
    assert running.firebrick("sandbox", "snapshots", "-q").stdout.split() == [name]
    (fork,) = running.firebrick("sandbox", "fork", box.sandbox_id).stdout.split()
    child = running.firebrick("sandbox", "create", name).stdout.strip()
    for item in (fork, child):
        assert running.firebrick("sandbox", "exec", item, "cat", "/home/user/mark").stdout == "kept"
    assert running.firebrick("sandbox", "snapshots", "--rm", name).stdout.strip() == name
    assert running.firebrick("sandbox", "snapshots", "-q").stdout == ""
    running.firebrick("sandbox", "kill", fork, child)
