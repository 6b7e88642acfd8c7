"""A whole Firebrick in an outer machine, brought up as where there is KVM, and reached from here by its clients."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.lab.fleet import put_checkout
from tests.lab.outer import Outer
from tests.lab.root import CHECKOUT_INSIDE
from tests.lab.shelf import CACHE_INSIDE
from tests.support.environment import clean_environ
from tests.support.firecracker import installed_tools
from tests.support.instance import SHARED, Instance, fill_cache
from tests.support.minbase import minbase_image

INSTANCE_VARIABLE = "FIREBRICK_TEST_INSTANCE_IN_LAB"
"""Set: tests of whole instances on microVMs take one in a machine of the lab."""
DATA_DIR = Path("/var/lib/firebrick")
API_PORT, EDGE_PORT = 3000, 3002
SLOWNESS = 10
CROWD_COUNT = 3
"""What a machine of 4 GiB holds of the base template at once."""
SETTINGS = {
    "HOST": "0.0.0.0",
    "PATIENCE": str(SLOWNESS),
    "SLOT_COUNT": "8",
    "NETWORK_PREFIX": "10.111.0.0/16",
    "RUNTIME": "firecracker",
    # Guests that nobody asked for would take the processor from those that a test waits for.
    "WARM_COUNT": "0",
}
UP_TIMEOUT_S = 1800
LEFT = """
ls -d /sys/fs/cgroup/firebrick-* /run/netns/* /run/firebrick/* 2>/dev/null || true
grep ' /var/lib/firebrick' /proc/mounts || true
pgrep -a firecracker || true
dmsetup ls 2>/dev/null | grep firebrick- || true
losetup -a | grep /var/lib/firebrick/node || true
"""


def fill_shelf() -> None:
    """Make what an instance and tests of microVMs in a machine need, as far as the cache has not got it. For root.

    Raises: PartMissing, FirebrickError — it cannot be had; CalledProcessError — the small image cannot be built.
    """
    asyncio.run(installed_tools())
    fill_cache()
    minbase_image()


@contextmanager
def whole_instance(outer: Outer, **settings: str) -> Iterator[Instance]:
    """Bring one up, and take it down with everything it made; `settings` as in the environment, without the prefix.

    Its data directory and its processes are in the machine; its command line can be used from here for all that goes by
    the API.
    """
    env = {f"FIREBRICK_{key.upper()}": value for key, value in (SETTINGS | settings).items()}
    channel = replace(outer.channel(), env=env)
    put_checkout(channel)
    shared = " ".join(f"{CACHE_INSIDE}/{name}" for name in SHARED)
    channel.shell(f"mkdir {DATA_DIR}; ln -s {shared} {DATA_DIR}")
    try:
        up = channel.run(
            "firebrick",
            "up",
            "--detach",
            "--runtime",
            env["FIREBRICK_RUNTIME"],
            timeout_s=UP_TIMEOUT_S,
            cwd=CHECKOUT_INSIDE,
        )
        if up.status != 0:
            logs = channel.shell(f"tail -n 20 {DATA_DIR}/log/*.log || true")
            raise RuntimeError(f"firebrick up failed:\n{(up.stdout + up.stderr).decode()}\n{logs}")
        print(up.stdout.decode())
        urls = {"E2B_API_URL": API_PORT, "E2B_SANDBOX_URL": EDGE_PORT}
        reached = {name: f"http://127.0.0.1:{outer.forward(port)}" for name, port in urls.items()}
        key = json.loads(channel.shell(f"cat {DATA_DIR}/credentials.json"))["api_key"]
        yield Instance(
            data_dir=DATA_DIR, env={**clean_environ(), **env, **reached, "E2B_API_KEY": key}, crowd_count=CROWD_COUNT
        )
    finally:
        down = channel.run("firebrick", "down", timeout_s=UP_TIMEOUT_S)
        if down.status != 0:
            raise RuntimeError(f"firebrick down failed:\n{(down.stdout + down.stderr).decode()}")
        if left := channel.shell(LEFT):
            raise RuntimeError(f"firebrick down left this behind:\n{left}")
        channel.shell(f"rm -r {DATA_DIR}")
