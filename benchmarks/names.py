"""What connections by name cost: CPU time of the name filter's process for each connection and each GiB.

    ./dev bench names

Works on a host of its own (namespaces) with an internet beside it; needs root.
"""

import asyncio
import socket
import threading
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from firebrick.log import configure
from firebrick.model.egress import EVERYWHERE, Egress
from firebrick.network.base import Slot
from firebrick.network.pool import NativeSlotPool
from tests.support.lab import PUBLIC_ADDRESS, Lab, lab_host, listen_in, socket_in
from tests.support.name_server import answering, filters
from tests.support.wait import wait_for

INSTANCE, NAME, NAME_SERVER, ELSEWHERE = "bnch", "allowed.test", "1.2.3.4", "9.9.9.9"
GIB_COUNT, CONNECTION_COUNT = 2, 500
TICKS_PER_S = 100


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def private_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def count_bytes(listener: socket.socket) -> None:
    """Answer each connection with how much it sent, until the listener is closed."""
    while True:
        try:
            caller, _ = listener.accept()
        except OSError:
            return
        with caller:
            got = 0
            while chunk := caller.recv(1 << 20):
                got += len(chunk)
            caller.sendall(b"%d" % got)


def send(slot: Slot, mib: int) -> None:
    with socket_in(slot.netns) as guest:
        guest.setblocking(True)
        guest.connect((ELSEWHERE, 80))
        guest.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        chunk = bytes(1 << 20)
        for _ in range(mib):
            guest.sendall(chunk)
        guest.shutdown(socket.SHUT_WR)
        assert int(guest.recv(100)) > mib << 20


async def measure(lab: Lab) -> None:
    servers = (IPv4Address(NAME_SERVER),)
    pool = NativeSlotPool(instance=INSTANCE, prefix=IPv4Network("10.111.0.0/16"), size=1, name_servers=servers)
    listener = listen_in(lab.internet, PUBLIC_ADDRESS, 80)
    listener.setblocking(True)
    threading.Thread(target=count_bytes, args=(listener,), daemon=True).start()
    try:
        await pool.open(frozenset())
        await wait_for(lambda: pool.free_count == 1)
        slot = await pool.acquire()
        names = lab.keep(listen_in(lab.internet, NAME_SERVER, 53, socket.SOCK_DGRAM))
        with answering(names, {NAME: [PUBLIC_ADDRESS]}):
            await pool.restrict(slot, Egress(deny=(EVERYWHERE,), names=(NAME,)))
            (pid,) = filters(INSTANCE)
            print(f"start: {cpu_s(pid):.2f} s of CPU, {private_mib(pid):.0f} MiB of its own")
            begin_s = cpu_s(pid)
            for _ in range(CONNECTION_COUNT):
                await asyncio.to_thread(send, slot, 0)
            print(f"a connection, its name looked up: {(cpu_s(pid) - begin_s) / CONNECTION_COUNT * 1000:.1f} ms of CPU")
            begin_s = cpu_s(pid)
            await asyncio.to_thread(send, slot, GIB_COUNT << 10)
            print(f"a GiB: {(cpu_s(pid) - begin_s) / GIB_COUNT:.2f} s of CPU")
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        await pool.close()
        await pool.destroy_all()


def main() -> None:
    configure("warning", "bench")
    with lab_host(INSTANCE) as lab:
        asyncio.run(measure(lab))


if __name__ == "__main__":
    main()
