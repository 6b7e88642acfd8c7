"""Creates that go on from their template's memory, by the official client, in an outer machine."""

import json
import time
from typing import Any

import pytest
from e2b import Sandbox

from tests.lab.channel import Channel
from tests.lab.fleet import Fleet
from tests.lab.whole import DATA_DIR, whole_instance
from tests.support.wait import wait_for_sync

# Minutes here, and several times that on a machine that is busy.
pytestmark = [pytest.mark.needs_root, pytest.mark.needs_lab, pytest.mark.nightly, pytest.mark.timeout(7200)]

TIMEOUT_S, LIFETIME_S = 1800, 7200
COUNT = 3
DRAW = """
cat /proc/sys/kernel/random/uuid; python3 -c 'import uuid; print(uuid.uuid4())'; openssl rand -hex 16
openssl ecparam -genkey -noout -name prime256v1 | sha256sum; head -c 16 /dev/urandom | sha256sum
"""
PID_OF_NODE = """
import json, sys
print(*[item["pid"] for item in json.load(sys.stdin)["processes"] if item["role"] == "node"])
"""
FOUND = """
date +%s; hostname; id -un; cat /etc/resolv.conf; mount | grep -c overlay; df -m / | tail -1 | wc -w
"""


def test_creates_go_on_from_their_templates_memory(machine: Fleet) -> None:
    """The sandbox that `up` made booted, all others go on from its machine's memory: each has its own randomness, disk,
    token and variables, the right time, and nothing of another's. It pauses, rests and goes on as one that booted. The
    memory outlives the node agent."""
    channel = machine.outers[0].channel()
    with whole_instance(machine.outers[0]) as instance:
        options: dict[str, Any] = {**instance.sdk, "request_timeout": TIMEOUT_S}
        boxes = [Sandbox.create(timeout=LIFETIME_S, envs={"ORDER": str(n)}, **options) for n in range(COUNT)]
        kinds = [event["from_template"] for event in _events(channel, "machine.ready")]
        assert kinds == [False] + [True] * COUNT
        drawn = [box.commands.run(DRAW, timeout=TIMEOUT_S).stdout.split() for box in boxes]
        assert [len(set(column)) for column in zip(*drawn, strict=True)].count(COUNT) >= 5
        assert [box.commands.run("echo $ORDER", timeout=TIMEOUT_S).stdout for box in boxes] == ["0\n", "1\n", "2\n"]
        found = [box.commands.run(FOUND, timeout=TIMEOUT_S).stdout.split("\n") for box in boxes]
        assert all(abs(int(words[0]) - time.time()) < 120 for words in found)
        assert len({tuple(words[1:]) for words in found}) == 1
        boxes[0].files.write("/home/user/mark", "mine")
        assert [box.files.exists("/home/user/mark") for box in boxes] == [True, False, False]
        for box in boxes[1:]:
            assert box.kill() is True
        _goes_on_after_a_rest(channel, boxes[0], options)
        _outlives_the_node_agent(channel, options)


def _goes_on_after_a_rest(channel: Channel, box: Sandbox, options: dict[str, Any]) -> None:
    started = box.commands.run("sleep 100000", background=True, timeout=0)
    assert box.pause() is True
    wait_for_sync(lambda: not channel.shell("pgrep firecracker || true"), timeout_s=1800)
    again = Sandbox.connect(box.sandbox_id, timeout=LIFETIME_S, **options)
    assert started.pid in {item.pid for item in again.commands.list()}
    assert again.files.read("/home/user/mark") == "mine"
    assert again.kill() is True


def _outlives_the_node_agent(channel: Channel, options: dict[str, Any]) -> None:
    channel.shell("kill -9 $(firebrick status --json | python3 -c '" + PID_OF_NODE + "')")
    wait_for_sync(lambda: len(_events(channel, "node.recovered")) == 2, timeout_s=600)
    box = Sandbox.create(timeout=LIFETIME_S, **options)
    assert _events(channel, "machine.ready")[-1]["from_template"]
    assert box.kill() is True


def _events(channel: Channel, name: str) -> list[dict[str, Any]]:
    lines = channel.shell(f"cat {DATA_DIR}/log/node.log").splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return [event for event in events if event.get("event") == name]
