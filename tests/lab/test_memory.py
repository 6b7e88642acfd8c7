"""MicroVMs that rest and fork with their memory, by the official client, in an outer machine."""

from typing import Any

import httpx
import pytest
from e2b import Sandbox

from tests.lab.fleet import Fleet
from tests.lab.whole import DATA_DIR, whole_instance
from tests.support.instance import Instance
from tests.support.wait import wait_for_sync

# A quarter of an hour here, and several times that on a machine that is busy.
pytestmark = [pytest.mark.needs_root, pytest.mark.needs_lab, pytest.mark.nightly, pytest.mark.timeout(7200)]

TIMEOUT_S, LIFETIME_S = 1800, 7200
FORK_COUNT = 10
SETTINGS = {"slot_count": "16"}

LIVING = """
import hashlib, http.server, os, random, subprocess, threading, time, uuid

random.seed(7)
state = {"count": 0}

class Counter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{state['count']} {os.getpid()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

def draw():
    made = subprocess.run(["openssl", "rand", "-hex", "16"], capture_output=True, text=True).stdout.strip()
    key = subprocess.run(["openssl", "ecparam", "-genkey", "-noout", "-name", "prime256v1"], capture_output=True).stdout
    new = subprocess.run(["python3", "-c", "import uuid; print(uuid.uuid4())"], capture_output=True, text=True)
    words = [os.urandom(16).hex(), str(uuid.uuid4()), made, hashlib.sha256(key).hexdigest(), new.stdout.strip()]
    return " ".join([*words, str(random.getrandbits(64))])

server = http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Counter)
threading.Thread(target=server.serve_forever, daemon=True).start()
with open("/home/user/counted", "w") as counted:
    while True:
        state["count"] += 1
        print(state["count"], file=counted, flush=True)
        if os.path.exists("/home/user/draw"):
            os.remove("/home/user/draw")
            with open("/home/user/drawing", "w") as drawing:
                drawing.write(draw())
            os.rename("/home/user/drawing", "/home/user/drawn")
        time.sleep(1)
"""


def test_memory_rests_in_files_and_forks_into_ten(machine: Fleet) -> None:
    """A counter, a listening server and an open file go on after a pause whose machine has ended; ten forks of the
    running sandbox go on at once, and no two draw the same random numbers: neither what ran on, nor what started anew.
    """
    with whole_instance(machine.outers[0], **SETTINGS) as instance:
        options: dict[str, Any] = {**instance.sdk, "request_timeout": TIMEOUT_S}
        box = Sandbox.create(timeout=LIFETIME_S, **options)
        box.files.write("/home/user/living.py", LIVING)
        box.commands.run("python3 /home/user/living.py", background=True, timeout=0)
        wait_for_sync(lambda: _served(instance, box), timeout_s=600)
        _rest(machine, instance, box)
        again = Sandbox.connect(box.sandbox_id, timeout=LIFETIME_S, **options)
        _has_gone_on(instance, again)
        _fork(again)
        assert again.kill() is True


def _served(instance: Instance, box: Sandbox) -> list[int]:
    """What the server in it says: its count and its process. Nothing: it does not answer."""
    headers = {"Host": box.get_host(8000)}
    asked = httpx.get(instance.sandbox_url, headers=headers, timeout=TIMEOUT_S, trust_env=False)
    return [int(word) for word in asked.text.split()] if asked.status_code == 200 else []


def _rest(machine: Fleet, instance: Instance, box: Sandbox) -> None:
    """Pause it until nothing of it runs."""
    assert box.pause() is True
    channel = machine.outers[0].channel()
    wait_for_sync(lambda: not channel.shell("pgrep firecracker || true"), timeout_s=1800)
    assert channel.shell(f"ls {DATA_DIR}/node/machines/*/memory")
    found = instance.api("GET", f"/sandboxes/{box.sandbox_id}").json()
    assert (found["state"], found["keepsMemory"], found["pauseMode"]) == ("paused", True, "full")


def _has_gone_on(instance: Instance, box: Sandbox) -> None:
    before = box.files.read("/home/user/counted").split()
    assert before == [str(count) for count in range(1, len(before) + 1)], "it began anew"
    count, _ = _served(instance, box)
    assert count >= len(before)
    wait_for_sync(lambda: _served(instance, box)[0] > count, timeout_s=600)
    wait_for_sync(lambda: len(box.files.read("/home/user/counted").split()) > len(before), timeout_s=600)


def _fork(box: Sandbox) -> None:
    forks = [fork for fork in box.fork(timeout=LIFETIME_S, count=FORK_COUNT) if isinstance(fork, Sandbox)]
    assert len(forks) == FORK_COUNT
    for fork in forks:
        fork.files.write("/home/user/draw", "")
    drawn = []
    for fork in forks:
        wait_for_sync(lambda fork=fork: fork.files.exists("/home/user/drawn"), timeout_s=1800)
        drawn.append(fork.files.read("/home/user/drawn").split())
        assert fork.kill() is True
    *kernels, own = zip(*drawn, strict=True)
    assert [len(set(column)) for column in kernels] == [FORK_COUNT] * 5
    # What a process seeded by itself goes on equal: docs/reference/pausing.md says so.
    assert len(set(own)) == 1
