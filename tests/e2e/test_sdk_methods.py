"""Methods of the official SDK that no other test here needs."""

import httpx
from e2b import PtySize, Sandbox

from tests.support.instance import Instance
from tests.support.wait import LIFETIME_S, wait_for_sync


def test_a_second_stream_joins_a_command(box: Sandbox) -> None:
    """What was printed before is told again, what comes later too; input may be a stream of pieces."""
    first = box.commands.run("echo one; read x; echo $x", background=True, stdin=True)
    second = box.commands.connect(first.pid)
    box.commands.stream_input(first.pid, ["tw", "o\n"])
    assert second.wait().stdout == "one\ntwo\n"


def test_a_terminal_is_resized_and_joined(box: Sandbox) -> None:
    """Its program sees the new size; a second stream gets the output; its end is told."""
    size = PtySize(rows=24, cols=80)
    terminal = box.pty.create(size)
    box.pty.resize(terminal.pid, PtySize(rows=31, cols=117))
    joined = box.pty.connect(terminal.pid)
    box.pty.stream_input(terminal.pid, [b"stty size; ", b"exit 3\n"])
    printed = b""
    for _, _, piece in joined:
        printed += piece or b""
    assert b"31 117" in printed


def test_files_go_up_by_a_signed_url(box: Sandbox) -> None:
    """upload_url takes a form's file; get_info tells what is there."""
    answer = httpx.post(box.upload_url("/home/user/up.txt"), files={"file": ("up.txt", b"by URL")}, trust_env=False)
    assert answer.status_code == 200
    assert box.files.get_info("/home/user/up.txt").size == len(b"by URL")
    assert box.get_mcp_url().endswith("/mcp")


def test_metrics_come_within_seconds(box: Sandbox) -> None:
    """The first point of a sandbox's use."""
    found = wait_for_sync(box.get_metrics, timeout_s=60)
    assert found[0].mem_total > 0


def test_network_rules_are_replaced_while_it_runs(box: Sandbox) -> None:
    """update_network is told back by get_info."""
    box.update_network({"deny_out": ["203.0.113.0/24"]})
    network = box.get_info().network
    assert network is not None
    assert network["deny_out"] == ["203.0.113.0/24"]


def test_the_old_name_of_pause_works(running: Instance) -> None:
    """beta_pause pauses; connect brings it back."""
    with Sandbox.create(timeout=LIFETIME_S, **running.sdk) as box:
        box.beta_pause()
        assert not box.is_running()
        Sandbox.connect(box.sandbox_id, timeout=LIFETIME_S, **running.sdk)
        assert box.commands.run("echo back").stdout == "back\n"
