"""rtnetlink: links, addresses, routes and neighbours, several requests in one system call.

Own encoding rather than a library: a slot is some twenty requests, and a general library spends most of a
slot's time on objects (15 ms a slot against 3 ms, measured with pyroute2 0.9.7 on two cores). A socket belongs
to the namespace that its thread was in when it was made, and stays there; so one thread can hold several
namespaces at once. Errors are `OSError` with the kernel's errno; the caller adds what it was doing.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from types import TracebackType

NETLINK_ROUTE = 0
GROUP_IPV4_ROUTE = 0x40
GROUP_IPV4_NETCONF = 1 << 23

NLM_REQUEST, NLM_ACK, NLM_DUMP, NLM_EXCL, NLM_CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_NEWNEIGH = 28

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD = 1, 3, 4, 18, 26, 27, 28
IFLA_INET_CONF, IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE = 1, 8, 1
CONF_FORWARDING, CONF_ACCEPT_REDIRECTS, CONF_SEND_REDIRECTS = 1, 4, 6
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_METRICS, RTA_TABLE, RTAX_MTU = 1, 4, 5, 8, 15, 2
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80
IFF_UP = 1
RT_TABLE_MAIN, RT_TABLE_LOCAL, RTPROT_STATIC, RTN_UNICAST = 254, 255, 4, 1
HEADER = struct.Struct("=IHHII")
NLA_TYPE_MASK = 0x3FFF


@dataclass(frozen=True, slots=True)
class Message:
    """One request: its type, its flags beyond REQUEST and ACK, and its encoded body."""

    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VethEnd:
    """One end of a veth pair. `netns` is an open descriptor; None: where the request is made. `mtu_bytes` 0 is the
    kernel's choice."""

    name: str
    index: int = 0
    mac: str = ""
    netns: int | None = None
    group: int = 0
    mtu_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    name: str
    index: int
    kind: str
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A unicast IPv4 route of any table but `local`; `link` is an interface index, 0 when it has none."""

    destination: IPv4Network
    link: int


def attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode a run of attributes; of a repeated one the last counts."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & NLA_TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _link_body(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, change)


def _end(end: VethEnd) -> bytes:
    body = attribute(IFLA_IFNAME, _text(end.name))
    if end.mac:
        body += attribute(IFLA_ADDRESS, bytes.fromhex(end.mac.replace(":", "")))
    if end.netns is not None:
        body += attribute(IFLA_NET_NS_FD, struct.pack("=I", end.netns))
    if end.group:
        body += attribute(IFLA_GROUP, struct.pack("=I", end.group))
    if end.mtu_bytes:
        body += attribute(IFLA_MTU, struct.pack("=I", end.mtu_bytes))
    return body


def veth_add(near: VethEnd, far: VethEnd) -> Message:
    """Make a pair, both ends down."""
    peer = attribute(VETH_INFO_PEER, _link_body(far.index) + _end(far))
    info = attribute(IFLA_INFO_KIND, b"veth") + attribute(IFLA_INFO_DATA, peer)
    body = _link_body(near.index) + _end(near) + attribute(IFLA_LINKINFO, info)
    return Message(RTM_NEWLINK, NLM_CREATE | NLM_EXCL, body)


def link_up(index: int) -> Message:
    return Message(RTM_NEWLINK, 0, _link_body(index, IFF_UP, IFF_UP))


def link_route_between(index: int, *, with_ipv6: bool) -> Message:
    """Let the link forward IPv4, heed and send no redirects, and give itself no IPv6 address.

    The same as three files below /proc/sys/net, whose names take the kernel milliseconds to look up on a machine
    with a thousand namespaces. `with_ipv6` says if the kernel has IPv6; without, it refuses its mention.
    """
    settings = ((CONF_FORWARDING, 1), (CONF_ACCEPT_REDIRECTS, 0), (CONF_SEND_REDIRECTS, 0))
    conf = b"".join(attribute(number, struct.pack("=I", value)) for number, value in settings)
    families = attribute(socket.AF_INET, attribute(IFLA_INET_CONF, conf))
    if with_ipv6:
        families += attribute(socket.AF_INET6, attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([ADDR_GEN_MODE_NONE])))
    return Message(RTM_NEWLINK, 0, _link_body(index) + attribute(IFLA_AF_SPEC, families))


def link_set_group(index: int, group: int) -> Message:
    return Message(RTM_NEWLINK, 0, _link_body(index) + attribute(IFLA_GROUP, struct.pack("=I", group)))


def link_delete(index: int) -> Message:
    return Message(RTM_DELLINK, 0, _link_body(index))


def links_delete_group(group: int) -> Message:
    """Delete every link of a group at once: as dear as one link, for the kernel waits out its readers once."""
    return Message(RTM_DELLINK, 0, _link_body() + attribute(IFLA_GROUP, struct.pack("=I", group)))


def address_add(index: int, address: IPv4Interface) -> Message:
    body = struct.pack("=BBBBI", socket.AF_INET, address.network.prefixlen, 0, 0, index)
    body += attribute(IFA_LOCAL, address.ip.packed) + attribute(IFA_ADDRESS, address.ip.packed)
    return Message(RTM_NEWADDR, NLM_CREATE | NLM_EXCL, body)


def default_route_add(index: int, gateway: IPv4Address, *, mtu_bytes: int = 0) -> Message:
    """`mtu_bytes` is for what takes this route, where that is less than the link's; 0: the link's."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0)
    body += attribute(RTA_OIF, struct.pack("=I", index)) + attribute(RTA_GATEWAY, gateway.packed)
    if mtu_bytes:
        body += attribute(RTA_METRICS, attribute(RTAX_MTU, struct.pack("=I", mtu_bytes)))
    return Message(RTM_NEWROUTE, NLM_CREATE | NLM_EXCL, body)


def neighbour_add(index: int, address: IPv4Address, mac: str) -> Message:
    """A neighbour that never expires and that no ARP answer can change."""
    body = struct.pack("=BxxxiHBB", socket.AF_INET, index, NUD_PERMANENT, 0, RTN_UNICAST)
    body += attribute(NDA_DST, address.packed) + attribute(NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
    return Message(RTM_NEWNEIGH, NLM_CREATE | NLM_EXCL, body)


class NetlinkSocket:
    """A netlink socket of the calling thread's network namespace. Used by one thread at a time."""

    def __init__(self, protocol: int = NETLINK_ROUTE, *, groups: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, groups))

    def request(self, *messages: Message) -> None:
        """Carry out all messages, in order, and wait for their answers.

        Raises: OSError of the first that failed; the later ones were tried all the same.
        """
        if not messages:
            return
        sent = (
            HEADER.pack(HEADER.size + len(item.body), item.kind, NLM_REQUEST | NLM_ACK | item.flags, number, 0)
            + item.body
            for number, item in enumerate(messages, 1)
        )
        self._socket.send(b"".join(sent))
        failures: dict[int, int] = {}
        answered = 0
        while answered < len(messages):
            for kind, number, payload in _messages(self._socket.recv(1 << 18)):
                if kind == NLMSG_ERROR:
                    answered += 1
                    code: int = -struct.unpack_from("=i", payload)[0]
                    if code:
                        failures[number] = code
        if failures:
            code = failures[min(failures)]
            raise OSError(code, f"{os.strerror(code)} (request {min(failures)} of {len(messages)})")

    def dump(self, kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """All objects of a kind as (message type, payload). Raises OSError."""
        header = HEADER.pack(HEADER.size + len(body), kind, NLM_REQUEST | NLM_DUMP, 1, 0)
        self._socket.send(header + body)
        while True:
            for answer, _, payload in _messages(self._socket.recv(1 << 18)):
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    raise OSError(code, os.strerror(code))
                yield answer, payload

    def links(self) -> list[Link]:
        found = []
        for _, payload in self.dump(RTM_GETLINK, _link_body()):
            index = struct.unpack_from("=i", payload, 4)[0]
            values = attributes(payload[16:])
            kind = attributes(values.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"")
            group = struct.unpack("=I", values.get(IFLA_GROUP, bytes(4)))[0]
            name = values[IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")
            found.append(Link(name=name, index=index, kind=kind.rstrip(b"\0").decode(), group=group))
        return found

    def addresses(self) -> list[tuple[int, IPv4Address]]:
        """Every IPv4 address as (interface index, address)."""
        found = []
        for _, payload in self.dump(RTM_GETADDR, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)):
            values = attributes(payload[8:])
            raw = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)
            if payload[0] == socket.AF_INET and raw:
                found.append((struct.unpack_from("=I", payload, 4)[0], IPv4Address(raw)))
        return found

    def routes(self) -> list[Route]:
        found = []
        for _, payload in self.dump(RTM_GETROUTE, struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
            values = attributes(payload[12:])
            table = struct.unpack("=I", values.get(RTA_TABLE, bytes([payload[4], 0, 0, 0])))[0]
            if payload[0] != socket.AF_INET or payload[7] != RTN_UNICAST or table == RT_TABLE_LOCAL:
                continue
            destination = IPv4Network((values.get(RTA_DST, bytes(4)), payload[1]))
            link = struct.unpack("=I", values.get(RTA_OIF, bytes(4)))[0]
            found.append(Route(destination=destination, link=link))
        return found

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain_nowait(self) -> None:
        """Throw away what is queued; for a socket that only says that something changed."""
        while True:
            try:
                self._socket.recv(1 << 18, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as exc:
                # The queue overflowed: the news is lost, but that there was news is all that matters here.
                if exc.errno != errno.ENOBUFS:
                    raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "NetlinkSocket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, _, number, _ = HEADER.unpack_from(data, at)
        yield kind, number, data[at + HEADER.size : at + length]
        at += (length + 3) & ~3
