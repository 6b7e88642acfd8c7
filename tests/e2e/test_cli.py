"""The commands, as typed."""

import json

import pytest
from e2b import Sandbox

from tests.support.instance import UP_TIMEOUT_S, Instance, instance
from tests.support.runtimes import missing_runtime
from tests.support.wait import LIFETIME_S


def test_sandbox_commands(running: Instance) -> None:
    """create, list, exec, logs and kill do what docker's users expect."""
    asked = ["--timeout", str(LIFETIME_S), "-e", "A=1", "-l", "who=me"]
    box = running.firebrick("sandbox", "create", *asked).stdout.strip()
    assert running.firebrick("sandbox", "list", "-q").stdout.split() == [box]
    shown = running.firebrick("sandbox", "list").stdout
    assert box in shown
    assert "running" in shown
    done = running.firebrick("sandbox", "exec", box, "sh", "-c", "echo $A; echo 'two  spaces' >&2; exit 5", check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "two  spaces\n", 5)
    piped = running.firebrick("sandbox", "exec", "-i", box, "tr", "a-z", "A-Z", input="shout\n")
    assert piped.stdout == "SHOUT\n"
    assert "process" in running.firebrick("sandbox", "logs", box).stdout
    assert running.firebrick("sandbox", "kill", box).stdout.strip() == box
    again = running.firebrick("sandbox", "kill", box, check=False)
    assert again.returncode == 1
    assert "doesn't exist" in again.stderr


def test_status_and_env(running: Instance) -> None:
    """status lists every process as healthy; env prints one line that a shell can take."""
    assert set(running.health().values()) == {"healthy"}
    assert set(running.health()) == {"node", "control", "edge", "supervisor"}
    line = running.firebrick("env").stdout
    assert line == (
        f"export E2B_API_URL={running.api_url} E2B_SANDBOX_URL={running.sandbox_url} E2B_API_KEY={running.api_key}\n"
    )


def test_a_second_up_finds_everything_there(running: Instance) -> None:
    """`up` on a running instance changes no process."""
    before = running.pids()
    running.firebrick("up", "--detach")
    assert running.pids() == before


def test_doctor_tells_json(running: Instance) -> None:
    """doctor's JSON names every check with its verdict; the runtime in use works."""
    document = json.loads(running.firebrick("doctor", "--json").stdout)
    verdicts = {item["name"]: item["status"] for item in document["probes"]}
    assert verdicts[running.env["FIREBRICK_RUNTIME"]] == "ok"


def test_mistakes_are_one_line(running: Instance) -> None:
    """Unknown ids, wrong options and unknown settings are told in a line, with a status that scripts can use."""
    unknown = running.firebrick("sandbox", "exec", "i" + "0" * 20, "true", check=False)
    assert unknown.returncode == 1
    assert "Traceback" not in unknown.stderr
    pair = running.firebrick("sandbox", "create", "-e", "nonsense", check=False)
    assert (pair.returncode, "KEY=VALUE" in pair.stderr) == (2, True)


def test_two_instances_side_by_side(running: Instance) -> None:
    """A second instance with other settings runs beside the first and leaves it alone when it goes."""
    runtime = running.env["FIREBRICK_RUNTIME"]
    with instance(runtime=runtime, network_prefix="10.200.0.0/24", slot_count="2", warm_count="0") as second:
        box = second.firebrick("sandbox", "create").stdout.strip()
        assert second.firebrick("sandbox", "exec", box, "echo", "two").stdout == "two\n"
        assert running.firebrick("sandbox", "list", "-q").stdout == ""
    assert set(running.health().values()) == {"healthy"}


def test_down_leaves_what_is_paused() -> None:
    """After down and up a paused sandbox is there with its files; what ran has ended."""
    if why := missing_runtime("container"):
        pytest.skip(f"NOT RUN: {why}")
    with instance(runtime="container", warm_count="0") as own:
        box = Sandbox.create(timeout=LIFETIME_S, **own.sdk)
        box.files.write("/home/user/note", "kept")
        assert box.pause()
        Sandbox.create(timeout=LIFETIME_S, **own.sdk)
        assert own.firebrick("down").stdout == "Stopped. 1 sandboxes ended.\n"
        own.firebrick("up", "--detach", timeout_s=UP_TIMEOUT_S)
        listed = own.firebrick("sandbox", "list", "-q").stdout.split()
        again = Sandbox.connect(box.sandbox_id, timeout=LIFETIME_S, **own.sdk)
        assert (listed, again.files.read("/home/user/note")) == ([box.sandbox_id], "kept")
        assert again.kill()
