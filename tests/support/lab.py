"""A host of our own: a network namespace that the test's thread lives in, with an "internet" beside it.

Whatever a test does to "the host" (rules, forwarding, routes) it does to this one. A socket belongs for life to
the namespace of the thread that made it, so servers and clients in other namespaces run in the test's event loop.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import TypeVar

from firebrick.linux import netns
from firebrick.linux.netlink import NetlinkSocket, VethEnd, address_add, default_route_add, link_up, veth_add
from tests.support.leaks import LeakCheck

T = TypeVar("T")

HOST_WAN_ADDRESS, INTERNET_GATEWAY = "203.0.113.1", "203.0.113.2"
PUBLIC_ADDRESS = "198.51.100.7"
INTERNET_ADDRESSES = (
    PUBLIC_ADDRESS,
    "1.2.3.4",
    "10.99.0.5",
    "192.168.77.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
)
HOST_ONLY_ADDRESSES = ("169.254.169.254", "172.20.0.9")


def call_in(place: int | Path, function: Callable[[], T]) -> T:
    """Call `function` in a thread that lives in another namespace, and wait for it."""
    result: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            if isinstance(place, Path):
                result.append(netns.call_inside(place, function))
            else:
                netns.enter(place)
                result.append(function())
        except BaseException as exc:  # noqa: BLE001 - the root of a thread: raised again by its caller
            failure.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def listen_in(place: int | Path, address: str, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket bound in another namespace, for use in this one's event loop."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if kind == socket.SOCK_STREAM:
            made.listen(64)
        made.setblocking(False)
        return made

    return call_in(place, make)


def socket_in(place: int | Path, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(family, kind)
        made.setblocking(False)
        return made

    return call_in(place, make)


@dataclass(slots=True)
class Lab:
    """`host` and `internet` are open descriptors of their namespaces; `wan` is the host's link to the internet."""

    host: int
    internet: int
    wan: str = "wan0"
    sockets: list[socket.socket] = field(default_factory=list)

    def keep(self, made: socket.socket) -> socket.socket:
        """Close it when the lab ends."""
        self.sockets.append(made)
        return made


def _new_namespace() -> int:
    made: list[int] = []

    def work() -> None:
        netns.unshare()
        with NetlinkSocket() as netlink:
            netlink.request(link_up(1))
        made.append(netns.open_own())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


def _address(*texts: str, index: int = 1) -> None:
    with NetlinkSocket() as netlink:
        netlink.request(*(address_add(index, IPv4Interface(text)) for text in texts))


def _connect_internet(lab: Lab, *, with_default_route: bool) -> None:
    with NetlinkSocket() as host:
        far = VethEnd(name="net0", index=2, netns=lab.internet)
        host.request(
            veth_add(VethEnd(name=lab.wan, index=2), far),
            address_add(2, IPv4Interface(f"{HOST_WAN_ADDRESS}/30")),
            link_up(2),
        )
        _address(*HOST_ONLY_ADDRESSES)
        call_in(lab.internet, _set_up_internet)
        if with_default_route:
            host.request(default_route_add(2, IPv4Address(INTERNET_GATEWAY)))


def _set_up_internet() -> None:
    _address(*INTERNET_ADDRESSES)
    with NetlinkSocket() as netlink:
        netlink.request(
            address_add(2, IPv4Interface(f"{INTERNET_GATEWAY}/30")),
            link_up(2),
            default_route_add(2, IPv4Address(HOST_WAN_ADDRESS)),
        )


@contextmanager
def lab_host(*watched: str, with_default_route: bool = True) -> Iterator[Lab]:
    """Move the calling thread to a host of its own; at the end check it for what bears a watched name."""
    before = netns.open_own()
    lab = Lab(host=_new_namespace(), internet=_new_namespace())
    try:
        netns.enter(lab.host)
        _connect_internet(lab, with_default_route=with_default_route)
        check = LeakCheck()
        check.watch(*watched, directories=tuple(Path("/run/firebrick") / name for name in watched))
        yield lab
        for made in lab.sockets:
            made.close()
        check.check()
    finally:
        for made in lab.sockets:
            made.close()
        netns.enter(before)
        for descriptor in (before, lab.host, lab.internet):
            os.close(descriptor)
