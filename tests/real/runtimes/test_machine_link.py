"""A microVM's link: packets as large as the slot's between host and guest, Ethernet's beyond."""

import hashlib
import json
from collections.abc import AsyncIterator

import pytest

from firebrick.linux.process import run
from firebrick.network.maker import LINK_MTU_BYTES
from firebrick.runtimes.firecracker.plan import OUTWARD_MTU_BYTES, TAP
from tests.support.leaks import LeakCheck
from tests.support.runtime_bench import OUTSIDE, RuntimeBench, runtime_bench

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_kvm]

MTU_TO = """
import socket
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.connect(("{address}", 9))
print(link.getsockopt(socket.IPPROTO_IP, 14))
"""
GIVE = "import random, sys; sys.stdout.write(random.Random(1).randbytes(1 << 22).hex())"


@pytest.fixture
async def bench(no_leaks: LeakCheck) -> AsyncIterator[RuntimeBench]:
    async with runtime_bench("firecracker", no_leaks) as made:
        yield made


async def test_the_guest_has_the_links_packets(bench: RuntimeBench) -> None:
    """Link, tap and guest have one MTU, what goes beyond the host has Ethernet's, and bytes come whole."""
    spec = await bench.serving()
    shown = await run(["ip", "-n", spec.netns.name, "-j", "link"])
    mtus = {link["ifname"]: link["mtu"] for link in json.loads(shown.stdout)}
    assert mtus[TAP] == mtus["eth0"] == LINK_MTU_BYTES
    for address, mtu_bytes in ((OUTSIDE, LINK_MTU_BYTES), ("192.0.2.1", OUTWARD_MTU_BYTES)):
        assert await bench.run(spec, f"python3 -c '{MTU_TO.format(address=address)}'") == (0, f"{mtu_bytes}\n")
    status, text = await bench.run(spec, f"python3 -c '{GIVE}'")
    assert status == 0
    here = await run(["python3", "-c", GIVE])
    assert hashlib.sha256(text.encode()).digest() == hashlib.sha256(here.stdout.encode()).digest()
