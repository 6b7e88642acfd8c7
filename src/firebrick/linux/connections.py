"""Cut connections: conntrack entries and TCP sockets of the calling thread's namespace, by address."""

import errno
import re
import socket
import struct
from collections.abc import Collection
from ipaddress import IPv4Address

from firebrick.linux.netlink import Message, NetlinkSocket, attribute, attributes

NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 4, 12
CONNTRACK_GET, CONNTRACK_DELETE = 0x0101, 0x0102
CTA_TUPLE_ORIG, CTA_ZONE = 1, 18
CTA_TUPLE_IP, CTA_IP_V4_SRC, CTA_IP_V4_DST = 1, 1, 2
NLA_NESTED = 0x8000
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
INET_DIAG_REQ_BYTECODE, INET_DIAG_BC_D_COND = 1, 8
# Without LISTEN (10) and TIME_WAIT (6): the first has no peer, the second carries nothing any more.
TCP_STATES = 0xFFF & ~(1 << 10) & ~(1 << 6)


def forget_connections(addresses: Collection[IPv4Address]) -> int:
    """Remove every tracked connection that one of these opened or was opened to; answers how many.

    A packet of such a connection then matches nothing: it is not translated and not taken for an answer.
    The kernel walks its whole table (9 ms with 262,144 buckets), so many addresses are done in one go.
    Raises OSError.
    """
    removed = 0
    with NetlinkSocket(NETLINK_NETFILTER) as conntrack:
        for tuple_, zone in _tracked(conntrack, {address.packed for address in addresses}):
            body = _nfgen() + attribute(CTA_TUPLE_ORIG | NLA_NESTED, tuple_)
            if zone:
                body += attribute(CTA_ZONE, zone)
            try:
                conntrack.request(Message(CONNTRACK_DELETE, 0, body))
                removed += 1
            except OSError as exc:
                if exc.errno != errno.ENOENT:
                    raise
    return removed


def _nfgen() -> bytes:
    return struct.pack("=BBH", socket.AF_INET, 0, 0)


def _tracked(conntrack: NetlinkSocket, wanted: set[bytes]) -> list[tuple[bytes, bytes]]:
    # Decoding is dear on a host with many connections: first look if an address occurs in the message at all.
    any_of_them = re.compile(b"|".join(map(re.escape, wanted)), re.DOTALL) if wanted else None
    found = []
    for _, payload in conntrack.dump(CONNTRACK_GET, _nfgen()):
        if any_of_them is None or not any_of_them.search(payload):
            continue
        values = attributes(payload[4:])
        tuple_ = values.get(CTA_TUPLE_ORIG, b"")
        ends = attributes(attributes(tuple_).get(CTA_TUPLE_IP, b""))
        if wanted & {ends.get(CTA_IP_V4_SRC, b""), ends.get(CTA_IP_V4_DST, b"")}:
            found.append((tuple_, values.get(CTA_ZONE, b"")))
    return found


def abort_tcp_to(address: IPv4Address) -> int:
    """Abort every TCP socket of this namespace whose peer is `address`; its owner sees a reset.

    Answers how many. A kernel built without INET_DIAG_DESTROY refuses: then none, and the owner finds out by its
    next send. Raises OSError.
    """
    aborted = 0
    with NetlinkSocket(NETLINK_SOCK_DIAG) as diag:
        for identity in _sockets_to(diag, address):
            body = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 0, TCP_STATES) + identity
            try:
                diag.request(Message(SOCK_DESTROY, 0, body))
                aborted += 1
            except OSError as exc:
                if exc.errno == errno.EOPNOTSUPP:
                    return aborted
                if exc.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
    return aborted


def _sockets_to(diag: NetlinkSocket, address: IPv4Address) -> list[bytes]:
    # One condition of the kernel's filter language: on a match jump to the end (taken), else beyond it (left out).
    condition = struct.pack("=BBH", INET_DIAG_BC_D_COND, 16, 20)
    condition += struct.pack("=BBxxi", socket.AF_INET, 32, -1) + address.packed
    identity = bytes(48)
    body = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 0, TCP_STATES) + identity
    body += attribute(INET_DIAG_REQ_BYTECODE, condition)
    found = []
    for _, payload in diag.dump(SOCK_DIAG_BY_FAMILY, body):
        identity = payload[4:52]
        if identity[20:24] == address.packed:
            found.append(identity)
    return found
