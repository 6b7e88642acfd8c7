"""The REST API without sandboxes behind it: list and get on one core, with 1,000 sandboxes in the store.

The server is a whole control plane (SQLite, reconcilers and all) over a node in memory, held on one core; the client
is on another where there is one. Compared with the same server's `/health`, which touches nothing.
    python -m benchmarks.api [--seconds 5] [--sandboxes 1000]
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import uvicorn
import uvloop

from benchmarks.figures import machine
from firebrick import log
from firebrick.api.app import create_app
from firebrick.clock import SystemClock
from firebrick.config import Config
from firebrick.control.plane import open_control_plane
from firebrick.model.ids import new_machine_id, new_sandbox_id
from firebrick.model.machine import RuntimeName
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.rpc.node_api import NodeSandbox
from firebrick.store.reservations import reservation_insert
from firebrick.store.sandboxes import sandbox_insert
from tests.support.control import BUILD_ID, LIMITS, NODE_ID
from tests.support.fake_node import FakeCatalog, FakeNode
from tests.support.instance import free_ports

CONNECTIONS = 8
IDLE_S = 6.0
"""Three rounds of the slowest reconciler that looks at every sandbox."""
KEY = "e2b_" + "0" * 40


async def serve(directory: Path, port: int, count: int) -> None:
    """The control plane with `count` running sandboxes, until it is killed."""
    clock = SystemClock()
    node = FakeNode(NODE_ID, BUILD_ID, clock)
    node.description = replace(
        node.description, millicpu=10**9, memory_mib=10**9, disk_mib=10**9, free_slot_count=10**6
    )
    async with open_control_plane(
        Config(data_dir=directory, log_level="error"), catalog=FakeCatalog(), node_clients={NODE_ID: node}, clock=clock
    ) as control:
        template = await control.templates.ensure_shipped(alias="base", build_id=BUILD_ID, limits=LIMITS)
        team, _ = await control.ensure_default_team(KEY)
        now = clock.now()
        async with control.platform.database.write() as tx:
            for number in range(count):
                row = Sandbox(
                    sandbox_id=new_sandbox_id(), team_id=team.team_id, template_id=template.template_id,
                    build_id=BUILD_ID, state=SandboxState.RUNNING, generation=1, limits=LIMITS, created_at=now,
                    started_at=now + timedelta(microseconds=number), expires_at=now + timedelta(days=1), timeout_s=300,
                    template_alias="base", metadata={"number": str(number), "tenth": str(number % 10), "app": "bench"},
                    runtime=RuntimeName.SIM, node_id=NODE_ID,
                    machine_id=new_machine_id(), address="10.111.0.1",
                )  # fmt: skip
                assert row.machine_id is not None
                node.running[row.sandbox_id] = NodeSandbox(
                    sandbox_id=row.sandbox_id, machine_id=row.machine_id, runtime=RuntimeName.SIM, address="10.111.0.1",
                    started_at=now, from_warm=False,
                )  # fmt: skip
                await sandbox_insert(tx, row)
                await reservation_insert(tx, sandbox_id=row.sandbox_id, node_id=NODE_ID, limits=LIMITS)
        config = uvicorn.Config(create_app(control), host="127.0.0.1", port=port, log_config=None, access_log=False)
        await uvicorn.Server(config).serve()


@contextmanager
def server(count: int) -> Iterator[tuple[int, int]]:
    """The server in a process of its own, on core 0; yields its port and pid."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "benchmarks.api", "--serve", directory, str(port), "--sandboxes", str(count)]
        process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, {0}))
        try:
            yield port, process.pid
        finally:
            process.kill()
            process.wait()


async def ask(port: int, path: str) -> bytes:
    """One request on a connection of its own; retried until the server is there."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.2)
            continue
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read(-1)
        writer.close()
        return answer


async def rate(port: int, path: str, seconds: float) -> float:
    """Requests a second over CONNECTIONS kept connections; every answer must be 200."""
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n\r\n".encode()
    end = time.monotonic() + seconds

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        done = 0
        while time.monotonic() < end:
            writer.write(head)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not answer.startswith(b"http/1.1 200"):
                raise RuntimeError(answer.decode())
            await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            done += 1
        writer.close()
        return done

    started = time.monotonic()
    counts = await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return sum(counts) / (time.monotonic() - started)


def cpu_of(pid: int) -> float:
    """Seconds of CPU it has used. What a busy machine does to the clock's seconds it does not do to these."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(port: int, pid: int, seconds: float) -> None:
    answer = await ask(port, "/v2/sandboxes?limit=100")
    sandbox_id = answer.partition(b'"sandboxID":"')[2][:21].decode()
    token = answer.lower().partition(b"x-next-token: ")[2].partition(b"\r\n")[0]
    second = answer[answer.lower().index(token) :][: len(token)].decode()
    paths = {
        "get one": f"/sandboxes/{sandbox_id}",
        "list v2, page of 1": "/v2/sandboxes?limit=1",
        "list v2, page of 100": "/v2/sandboxes?limit=100",
        "list v2, second page of 100": f"/v2/sandboxes?limit=100&nextToken={quote(second)}",
        "list v2, state and template": "/v2/sandboxes?limit=100&state=running&template=base",
        "list v2, metadata of one sandbox": "/v2/sandboxes?metadata=number%253D7",
        "list v2, metadata of a tenth, page of 100": "/v2/sandboxes?metadata=tenth%253D7",
        "list v2, metadata of all, page of 100": "/v2/sandboxes?metadata=app%253Dbench",
        "list v1, metadata of one sandbox": "/sandboxes?metadata=number%253D7",
        "list v1, all": "/sandboxes",
        "health (nothing behind it)": "/health",
    }
    print(f"\n## REST API on one core ({machine()})\n\n| request | a second | for a second of CPU |\n|---|--:|--:|")
    idle_s = cpu_of(pid)
    await asyncio.sleep(IDLE_S)
    print(f"| none: share of the core that its reconcilers take | | {(cpu_of(pid) - idle_s) / IDLE_S:.1%} |")
    for name, path in paths.items():
        await rate(port, path, 0.5)
        cpu_s, started = cpu_of(pid), time.monotonic()
        per_s = await rate(port, path, seconds)
        count = per_s * (time.monotonic() - started)
        print(f"| {name} | {per_s:.0f} | {count / (cpu_of(pid) - cpu_s):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--sandboxes", type=int, default=1000)
    parser.add_argument("--serve", nargs=2, metavar=("DIRECTORY", "PORT"))
    options = parser.parse_args()
    if options.serve:
        log.configure("error", "control")
        uvloop.run(serve(Path(options.serve[0]), int(options.serve[1]), options.sandboxes))
        return
    cores = sorted(os.sched_getaffinity(0))
    with server(options.sandboxes) as (port, pid):
        os.sched_setaffinity(0, {cores[-1]})
        asyncio.run(measure(port, pid, options.seconds))


if __name__ == "__main__":
    main()
