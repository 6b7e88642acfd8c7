"""User code that eats all of something: the sandbox goes on answering, and tells which limit was reached."""

from typing import Any

import pytest
from e2b import CommandExitException, Sandbox

from tests.support.instance import Instance
from tests.support.wait import SLOWNESS, wait_for_sync

# What eats, and what is printed once there is nothing left to eat; a hog that is ended as a whole prints no more.
HOGS = {
    "processes": ("while :; do sleep 1000 & done", "Resource temporarily unavailable"),
    "memory": ("while :; do python3 -c 'x = []\nwhile True: x.append(bytearray(10**7))'; echo status $?; done", "137"),
    "small memory": (
        "for i in $(seq 150); do python3 -c 'import time; x = bytearray(15 * 10**6); time.sleep(1000)' "
        "|| echo ended $? & done; sleep 1000",
        "ended",
    ),
    "descriptors": (
        "python3 -c 'import os, time\nfor _ in range(20):\n  if os.fork() == 0: break\ntry:\n"
        '  while True: os.open("/dev/null", 0)\nexcept OSError as exc: print(exc, flush=True)\ntime.sleep(1000)\'',
        "Too many open files",
    ),
    "connections": (
        "python3 -c 'import socket, time\nheld = []\n"
        'for _ in range(3000): held.append(socket.create_connection(("127.0.0.1", 49983)))\n'
        'print("held", flush=True)\ntime.sleep(1000)\'',
        "held",
    ),
    "disk": ("fallocate -l 9G /home/user/a; dd if=/dev/zero of=/home/user/b bs=1M; sleep 1000", "No space left"),
    "processor": ("for i in $(seq 50); do while :; do :; done & done; echo burning; wait", "burning"),
}


@pytest.mark.parametrize("name", HOGS)
def test_a_sandbox_answers_at_its_limits(box: Sandbox, name: str) -> None:
    """Commands start and end, files are read and written, and the hog can be killed."""
    script, mark = HOGS[name]
    box.files.write("/home/user/precious", "kept")
    handle = box.commands.run(script, background=True, timeout=0)
    printed = ""
    for stdout, stderr, _ in handle:
        printed += (stdout or "") + (stderr or "")
        if mark in printed:
            break
    for _ in range(3):
        assert box.commands.run("true", timeout=60 * SLOWNESS).exit_code == 0
    assert box.files.read("/home/user/precious") == "kept"
    box.files.write("/dev/shm/note", "written")
    assert box.files.read("/dev/shm/note") == "written"
    box.commands.kill(handle.pid)
    assert handle.pid not in [process.pid for process in box.commands.list()]


def test_the_end_tells_that_memory_was_the_reason(box: Sandbox, running: Instance) -> None:
    """A command that was killed for memory says so in its error, and the sandbox's log names the limit."""
    with pytest.raises(CommandExitException) as ended:
        box.commands.run("exec python3 -c 'x = []\nwhile True: x.append(bytearray(10**7))'")
    assert ended.value.exit_code == -1
    assert ended.value.error == "signal: killed (out of memory: the sandbox's memory limit was reached)"
    wait_for_sync(lambda: "memory" in [entry["fields"].get("limit") for entry in warnings(running, box)])


def test_it_can_be_asked_who_was_killed_for_memory(box: Sandbox, running: Instance) -> None:
    """`firebrick why` names the process and its id inside."""
    hog = box.commands.run("exec python3 -c 'x = []\nwhile True: x.append(bytearray(10**7))'", background=True)
    with pytest.raises(CommandExitException):
        hog.wait()
    told = f"out of memory: (python3 (pid {hog.pid}) was killed"
    wait_for_sync(lambda: told in running.firebrick("why", box.sandbox_id).stdout)


def warnings(running: Instance, box: Sandbox) -> list[dict[str, Any]]:
    answer = running.api("GET", f"/v2/sandboxes/{box.sandbox_id}/logs?level=warn").json()
    return [entry for entry in answer["logs"] if entry["level"] == "warn"]
