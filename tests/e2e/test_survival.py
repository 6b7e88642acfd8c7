"""Processes of ours die; sandboxes do not. Guests misbehave; nobody else notices."""

import os
import signal

import httpx
import pytest
from e2b import Sandbox

from tests.support.instance import Instance
from tests.support.wait import LIFETIME_S, SLOWNESS, wait_for_sync

ROLES = ("node", "control", "edge")


@pytest.mark.parametrize("role", [*ROLES, "supervisor"])
def test_a_killed_process_ends_no_sandbox(running: Instance, role: str) -> None:
    """After `kill -9` of any process of ours and its restart, every sandbox answers, and new ones can be made."""
    boxes = [Sandbox.create(timeout=LIFETIME_S, **running.sdk) for _ in range(3)]
    handles = [
        box.commands.run("while true; do date +%s%N > /tmp/t; sleep 0.1; done", background=True) for box in boxes
    ]
    try:
        before = running.pids()
        os.kill(before[role], signal.SIGKILL)
        if role == "supervisor":
            wait_for_sync(lambda: "supervisor" not in running.pids())
            running.firebrick("up", "--detach")
        wait_for_sync(lambda: running.pids().get(role, before[role]) != before[role], timeout_s=30)
        wait_for_sync(lambda: set(running.health().values()) == {"healthy"}, timeout_s=30)
        assert {name: pid for name, pid in running.pids().items() if name != role} == {
            name: pid for name, pid in before.items() if name != role
        }
        for box, handle in zip(boxes, handles, strict=True):
            again = Sandbox.connect(box.sandbox_id, timeout=LIFETIME_S, **running.sdk)
            wait_for_sync(lambda again=again: again.commands.run("cat /tmp/t").stdout)
            assert handle.pid in [item.pid for item in again.commands.list()]
        with Sandbox.create(timeout=LIFETIME_S, **running.sdk) as fresh:
            assert fresh.commands.run("echo alive").stdout == "alive\n"
    finally:
        for box in boxes:
            assert box.kill()


def test_a_guest_that_ends_itself_is_told(running: Instance) -> None:
    """A sandbox whose first process is killed from inside ends with its cause; the edge tells it."""
    box = Sandbox.create(timeout=LIFETIME_S, **running.sdk)
    try:
        try:
            box.commands.run("kill -TERM 1", user="root")
        except Exception:  # noqa: BLE001 - the stream may break before or after the answer: both are right
            pass
        wait_for_sync(lambda: running.api("GET", f"/sandboxes/{box.sandbox_id}").status_code == 404, timeout_s=30)
        told = httpx.get(running.sandbox_url, headers={"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "80"})
        assert told.status_code == 502
        assert "was not found" in told.json()["message"]
        assert "its main process ended" in told.json()["message"]
    finally:
        box.kill()


def test_a_fork_bomb_stays_inside(running: Instance) -> None:
    """A guest that forks without end meets its own limit; a neighbour goes on working."""
    with (
        Sandbox.create(timeout=LIFETIME_S, **running.sdk) as bomb,
        Sandbox.create(timeout=LIFETIME_S, **running.sdk) as neighbour,
    ):
        bomb.commands.run("for i in $(seq 20000); do sleep 300 & done", background=True)
        for _ in range(5):
            assert neighbour.commands.run("echo fine", timeout=30 * SLOWNESS).stdout == "fine\n"


def test_a_full_disk_is_the_guests_own(running: Instance) -> None:
    """A guest that fills its disk gets ENOSPC; its files stay readable and neighbours do not notice."""
    with (
        Sandbox.create(timeout=LIFETIME_S, **running.sdk) as box,
        Sandbox.create(timeout=LIFETIME_S, **running.sdk) as neighbour,
    ):
        box.files.write("/home/user/precious", "kept")
        done = box.commands.run(
            "fallocate -l 9G /home/user/a; dd if=/dev/zero of=/home/user/b bs=64M count=64 2>&1; true",
            timeout=120 * SLOWNESS,
        )
        assert "No space left" in done.stdout + done.stderr
        assert box.files.read("/home/user/precious") == "kept"
        neighbour.files.write("/home/user/x", "y")
        assert neighbour.files.read("/home/user/x") == "y"


def test_a_memory_hog_dies_alone(running: Instance) -> None:
    """A guest that takes all its memory loses that process or itself, with the cause recorded; the node goes on."""
    with Sandbox.create(timeout=LIFETIME_S, **running.sdk) as neighbour:
        box = Sandbox.create(timeout=LIFETIME_S, **running.sdk)
        hog = 'python3 -c "x = [bytearray(10**7) for _ in range(500)]"'
        printed = ""
        try:
            printed = box.commands.run(f"{hog}; echo status $?", timeout=60 * SLOWNESS).stdout
        except Exception as exc:  # noqa: BLE001 - the sandbox as a whole may be what was ended
            printed = str(exc)
        assert "status 0" not in printed
        assert neighbour.commands.run("echo fine").stdout == "fine\n"
        box.kill()
