"""MicroVMs by default: the most telling tests of the driver, and a whole instance by the official client, in an outer
machine. All others take most of an hour there: docs/reference/lab.md says how to run them."""

import os
import subprocess
import sys
import traceback
from typing import Any

import httpx
import pytest
from e2b import CommandExitException, PtySize, Sandbox

from tests.lab import parts
from tests.lab.fleet import Fleet
from tests.lab.whole import whole_instance
from tests.support.instance import Instance
from tests.support.wait import wait_for_sync

# Minutes here, and ten times of that on a machine that is busy. The first test builds the root, if no other run has.
pytestmark = [pytest.mark.needs_root, pytest.mark.needs_lab, pytest.mark.timeout(3600)]

DRIVER_TESTS = (
    "test_machine_jail.py::test_the_monitor_has_nothing",
    "test_machine_jail.py::test_a_paused_machine_is_adopted_and_goes_on",
    "test_agent_line.py::test_control_needs_no_network",
    "test_agent_line.py::test_no_way_leads_from_the_guest_to_the_host",
    "test_machine_life.py::test_the_exit_code_is_told[firecracker-7]",
    "test_machine_life.py::test_destroy_leaves_the_rootfs_free_at_once",
)
TIMEOUT_S, LIFETIME_S = 900, 3600
ATTEMPT_COUNT = 3
"""A qemu that is too old stops machines (tests/lab/emulator.py), and not everybody can have a newer one: what fails is
tried again, and told. A fault of ours fails each time."""


def test_the_driver_keeps_its_contract(machine: Fleet) -> None:
    """A machine's life, its jail, its exit and its adoption by another node agent, as on hardware."""
    tests = [f"tests/real/runtimes/{name}" for name in DRIVER_TESTS]
    assert f"{len(DRIVER_TESTS)} passed" in _passed(machine, "firecracker", *tests)


def test_disks_keep_their_contract_by_every_way_of_cloning(machine: Fleet) -> None:
    """Blocks shared on XFS, and a thin pool of device mapper."""
    assert "skipped" not in _passed(machine, "devmapper or reflink", "tests/contract/rootfs")


def _passed(machine: Fleet, selected: str, *tests: str) -> str:
    """What a run in the machine said, in which nothing failed."""
    argv = [sys.executable, "-m", "tests.lab", "test", "-q", "-k", selected, *tests]
    env = {**os.environ, "FIREBRICK_LAB_NAME": machine.folder.name}
    said: list[str] = []
    for _ in range(ATTEMPT_COUNT):
        done = subprocess.run(
            argv, cwd=parts.CHECKOUT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        said.append(done.stdout + done.stderr)
        if done.returncode == 0:
            return done.stdout
    pytest.fail("\n".join(said))


def test_the_official_client_uses_a_whole_instance(machine: Fleet) -> None:
    """`firebrick up --runtime firecracker` goes through in one call; create, commands, files, terminal, server, pause,
    resume and kill are what they are on other runtimes; `firebrick down` leaves nothing."""
    _use_an_instance(machine)


@pytest.mark.nightly
def test_the_official_client_uses_an_instance_on_a_thin_pool(machine: Fleet) -> None:
    """The same where disks are devices of a thin pool; afterwards neither device nor pool is there."""
    _use_an_instance(machine, disk_clones="devmapper")


def _use_an_instance(machine: Fleet, **settings: str) -> None:
    for attempt in range(1, ATTEMPT_COUNT + 1):
        try:
            with whole_instance(machine.outers[0], **settings) as instance:
                _live(instance)
            return
        except Exception:
            if attempt == ATTEMPT_COUNT:
                raise
            print(f"attempt {attempt} of {ATTEMPT_COUNT} failed:\n{traceback.format_exc()}")


def _live(instance: Instance) -> None:
    options = {**instance.sdk, "request_timeout": TIMEOUT_S}
    box = Sandbox.create(timeout=LIFETIME_S, **options)
    _use_commands(box)
    _use_files_and_terminal(box)
    _reach_a_server(box, instance)
    _pause_and_resume(box, options)
    assert box.kill() is True
    assert box.is_running() is False


def _use_commands(box: Sandbox) -> None:
    assert box.commands.run("echo out; echo err >&2; id -un", timeout=TIMEOUT_S).stdout == "out\nuser\n"
    with pytest.raises(CommandExitException) as ended:
        box.commands.run("exit 7", timeout=TIMEOUT_S)
    assert ended.value.exit_code == 7
    handle = box.commands.run("read line; echo got $line", background=True, stdin=True, timeout=TIMEOUT_S)
    assert handle.pid in {item.pid for item in box.commands.list()}
    box.commands.send_stdin(handle.pid, "this\n")
    assert handle.wait().stdout == "got this\n"


def _use_files_and_terminal(box: Sandbox) -> None:
    box.files.write("/home/user/mark", "kept")
    assert box.files.read("/home/user/mark") == "kept"
    assert "mark" in {entry.name for entry in box.files.list("/home/user")}
    shown: list[bytes] = []
    terminal = box.pty.create(PtySize(rows=24, cols=80), timeout=TIMEOUT_S)
    box.pty.send_stdin(terminal.pid, b"echo $((6*7)); exit\n")
    terminal.wait(on_pty=shown.append)
    assert b"42" in b"".join(shown)


def _reach_a_server(box: Sandbox, instance: Instance) -> None:
    box.commands.run("python3 -m http.server 8000 --directory /home/user", background=True, timeout=0)
    headers = {"Host": box.get_host(8000)}

    def answer() -> bool:
        asked = httpx.get(f"{instance.sandbox_url}/mark", headers=headers, timeout=TIMEOUT_S, trust_env=False)
        return asked.text == "kept"

    wait_for_sync(answer, timeout_s=600)


def _pause_and_resume(box: Sandbox, options: dict[str, Any]) -> None:
    """Processes go on, for the machine kept its memory."""
    before = {item.pid for item in box.commands.list()}
    assert box.pause() is True
    assert box.is_running() is False
    again = Sandbox.connect(box.sandbox_id, timeout=LIFETIME_S, **options)
    assert again.files.read("/home/user/mark") == "kept"
    assert {item.pid for item in again.commands.list()} == before != set()
