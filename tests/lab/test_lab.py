"""The lab itself: two outer machines from one saved state, what is in them, and that they leave nothing behind."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from tests.lab import parts
from tests.lab.__main__ import RESULTS
from tests.lab.channel import Channel, ChannelBroken
from tests.lab.fleet import Fleet, fleet
from tests.support.leaks import HostInventory

# The first test builds the root, if no other run has.
pytestmark = [pytest.mark.needs_lab, pytest.mark.timeout(900)]

THINGS = (
    "kvm", "tun", "vsock", "device_mapper", "nbd", "cgroup_v2", "nf_tables", "filesystems", "userfaultfd",
    "firecracker",
)  # fmt: skip
GUEST_DEADLINE_S = 200
BOOT_A_GUEST = """
cat > /tmp/guest.json <<'END'
{"boot-source": {"kernel_image_path": "/lab/vmlinux", "boot_args": "console=ttyS0 reboot=k panic=-1 pci=off"},
 "drives": [], "machine-config": {"vcpu_count": 1, "mem_size_mib": 128}}
END
timeout "$1" firecracker --no-api --config-file /tmp/guest.json > /tmp/guest.log 2>&1 &
until grep --text --max-count 1 "Linux version" /tmp/guest.log; do
  kill -0 $! || { cat /tmp/guest.log; exit 1; }
  sleep 0.1
done
kill $!
wait
"""
SWITCH_CODE = """
import fcntl, os, subprocess, sys
sleeper = "import time\\nwhile True: time.sleep(0.0005)"
busy = [subprocess.Popen([sys.executable, "-c", sleeper]) for _ in range(4)]
kvm = os.open("/dev/kvm", os.O_RDWR)
try:
    for _ in range(100):
        os.close(fcntl.ioctl(kvm, 0xAE01, 0))
finally:
    for process in busy:
        process.kill()
"""
"""Making and destroying a machine of KVM switches code of the scheduler, which all processors are executing."""
RANDOMNESS = "head -c 16 /dev/urandom | od -An -tx1; cat /etc/machine-id"


@pytest.fixture(scope="module")
def two() -> Iterator[Fleet]:
    """Two machines for all tests here; what they leave is looked for after they ended."""
    folder = parts.CACHE / "up" / f"test-{uuid.uuid4().hex[:8]}"
    before = HostInventory.take(prefixes=(folder.name,))
    with fleet(folder, count=2) as found:
        yield found
    assert not HostInventory.take(prefixes=(folder.name,)).diff(before)
    assert not folder.exists()


@pytest.fixture
def one(two: Fleet) -> Channel:
    return two.channel()


def test_everything_is_there(one: Channel) -> None:
    """KVM, tun, vsock, device mapper, nbd and the rest are used, not looked at."""
    done = one.run("lab-check")
    lines = done.stdout.decode().splitlines()
    assert lines == [f"ok       {name}" for name in THINGS], done.stderr.decode()


def test_a_firecracker_guest_boots(one: Channel) -> None:
    """The real Firecracker boots the Debian kernel to the first lines of its serial console."""
    said = one.run("/bin/bash", "-c", BOOT_A_GUEST, "boot", str(GUEST_DEADLINE_S)).stdout.decode()
    assert f"Linux version {one.shell('uname -r').strip()}" in said, said


def test_code_that_is_switched_stops_no_processor(one: Channel) -> None:
    """A processor executes what the other has written in its way, and not what stood there before."""
    done = one.run("/venv/bin/python", "-c", SWITCH_CODE, timeout_s=GUEST_DEADLINE_S)
    assert done.status == 0, done.stderr.decode()


def test_machines_from_one_state_are_two(two: Fleet) -> None:
    """They have names and addresses of their own, reach each other, and share no randomness."""
    first, second = two.channel("lab1"), two.channel("lab2")
    assert (first.shell("hostname"), second.shell("hostname")) == ("lab1\n", "lab2\n")
    assert "1 received" in first.shell("ping -c 1 -W 30 lab2")
    assert "1 received" in second.shell("ping -c 1 -W 30 lab1")
    assert not set(first.shell(RANDOMNESS).splitlines()) & set(second.shell(RANDOMNESS).splitlines())


def test_a_machine_gets_the_time_it_is_told(two: Fleet) -> None:
    """The clock of a restored machine is set, not carried on from when it was saved."""
    channel = two.channel("lab2")
    hosts = {"lab1": "10.78.0.1", "lab2": "10.78.0.2"}
    wanted = {"name": "lab2", "seed": "5a" * 32, "mac": "52:54:00:4c:41:02", "hosts": hosts}
    channel.identify(wanted | {"now": 2_000_000_000})
    assert channel.shell("date -u +%Y-%m") == "2033-05\n"


def test_a_command_has_input_outputs_and_an_end(one: Channel) -> None:
    """Both outputs come apart, input arrives whole, and the status is that of the command, as a shell tells it."""
    done = one.run("/bin/sh", "-c", "cat; echo complaint >&2; exit 7", stdin=[b"a" * 300_000, b"b"])
    assert (done.status, done.stdout, done.stderr) == (7, b"a" * 300_000 + b"b", b"complaint\n")
    assert one.run("/bin/sh", "-c", "kill -9 $$").status == 137
    assert one.run("no-such-program").status == 127


def test_who_hangs_up_ends_the_command(one: Channel) -> None:
    """A command does not outlive the connection that asked for it."""
    with pytest.raises(TimeoutError):
        one.run("/bin/sh", "-c", "sleep 86399; true", timeout_s=1)
    one.shell("while pgrep -x sleep; do sleep 0.1; done")


def test_without_the_token_nothing_runs(one: Channel) -> None:
    """Another user of this machine, who can reach the port, gets no answer."""
    with pytest.raises(ChannelBroken, match="hung up"):
        Channel(port=one.port, token="0" * 32).run("true")


def test_a_selection_runs_inside(two: Fleet) -> None:
    """`./dev lab test` runs this checkout's tests in the machine that is up, and brings the results back."""
    argv = [sys.executable, "-m", "tests.lab", "test", "--on", "lab1", "-q", "tests/lab/test_kernel.py"]
    env = {**os.environ, "FIREBRICK_LAB_NAME": two.folder.name}
    done = subprocess.run(argv, cwd=parts.CHECKOUT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'failures="0"' in (RESULTS / "lab1" / "junit.xml").read_text()
    assert (RESULTS / "lab1" / "console.log").exists()
