"""What moving bytes between host and a microVM costs: processor time of the whole machine and of the monitor,
with Ethernet's packets and with those of a slot's links.

python -m benchmarks.guest_network     (as root, where KVM boots guests: `./dev lab run` has one)
"""

import argparse
import asyncio
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

from firebrick.network.maker import LINK_MTU_BYTES
from firebrick.runtimes.base import MachineSpec
from tests.support.lab import call_in
from tests.support.leaks import LeakCheck
from tests.support.runtime_bench import INSIDE, RuntimeBench, runtime_bench

PORT = 9000
CHUNK_BYTES = 1 << 20
PATIENCE_S = 120.0

TAKE = f"""
import socket
with socket.create_server(("0.0.0.0", {PORT})) as server, server.accept()[0] as link:
    while link.recv({CHUNK_BYTES}): pass
    link.sendall(b"done")
"""
SET_MTU = """
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8922, struct.pack("16si20x", b"eth0", {mtu_bytes}))
"""
GIVE = f"""
import socket
with socket.create_server(("0.0.0.0", {PORT})) as server, server.accept()[0] as link:
    for _ in range(int(link.recv(16))): link.sendall(bytes({CHUNK_BYTES}))
"""


def busy_s() -> float:
    """Processor time of this machine so far, all but idle."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / 100


def connect() -> socket.socket:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection((INSIDE, PORT), timeout=PATIENCE_S)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def send(link: socket.socket, mib: int) -> None:
    for _ in range(mib):
        link.sendall(bytes(CHUNK_BYTES))
    link.shutdown(socket.SHUT_WR)
    link.recv(4)


def receive(link: socket.socket, mib: int) -> None:
    link.sendall(str(mib).encode())
    got = 0
    while chunk := link.recv(CHUNK_BYTES):
        got += len(chunk)
    assert got == mib << 20


async def moved(
    bench: RuntimeBench, spec: MachineSpec, program: str, move: Callable[[socket.socket, int], None], mib: int
) -> dict[str, float]:
    """Seconds of processor time for each GiB: of the machine, of the monitor's cgroup; and of wall time."""
    outer = spec.netns.with_name(f"{spec.netns.name}-out")
    inside = asyncio.create_task(bench.run(spec, f"python3 -c '{program}'"))
    link = await asyncio.to_thread(call_in, outer, connect)
    with link:
        usage = await bench.runtime.usage(spec.machine_id)
        assert usage is not None
        before = busy_s(), usage.cpu_ns / 1e9, time.monotonic()
        await asyncio.to_thread(move, link, mib)
        usage = await bench.runtime.usage(spec.machine_id)
        assert usage is not None
        after = busy_s(), usage.cpu_ns / 1e9, time.monotonic()
    await inside
    names = ("machine_s", "monitor_s", "wall_s")
    return {name: round((b - a) * 1024 / mib, 2) for name, a, b in zip(names, before, after, strict=True)}


async def measure(mib: int, rounds: int) -> None:
    async with runtime_bench("firecracker", LeakCheck()) as bench:
        spec = await bench.serving()
        for _ in range(rounds):
            for mtu_bytes in (1500, LINK_MTU_BYTES):
                status, said = await bench.run(spec, f"python3 -c '{SET_MTU.format(mtu_bytes=mtu_bytes)}'")
                assert status == 0, said
                up = await moved(bench, spec, TAKE, send, mib)
                down = await moved(bench, spec, GIVE, receive, mib)
                print(json.dumps({"mtu": mtu_bytes, "up_per_gib": up, "down_per_gib": down}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    asyncio.run(measure(options.mib, options.rounds))


if __name__ == "__main__":
    main()
