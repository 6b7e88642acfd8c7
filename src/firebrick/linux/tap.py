"""A tap device in place of a namespace's own link: what comes in on one goes out on the other, as it is.

Two rules of nftables' `netdev` family do it, before the namespace's own network stack sees a packet; so its address
may stay on the link, and whoever is behind the tap has it. Functions block and act on the calling thread's namespace.
"""

import fcntl
import os
import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from firebrick.linux.netlink import NetlinkSocket, link_up
from firebrick.linux.nft import Nft, NftFailed

TUN = Path("/dev/net/tun")
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCGIFADDR, _SIOCGIFNETMASK, _SIOCGIFHWADDR = 0x8915, 0x891B, 0x8927
_SIOCGIFMTU, _SIOCSIFMTU = 0x8921, 0x8922
MOST_MTU_BYTES = 65_521
"""Of a tap."""
_ROUTES = Path("/proc/thread-self/net/route")
_RTF_GATEWAY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """How a link is set; `gateway` is empty where no default route leads over it."""

    mac: str
    address: IPv4Interface
    gateway: str = ""
    mtu_bytes: int = 1500


def link_settings(name: str) -> LinkSettings | None:
    """None when there is no such link, or it has no address. Raises OSError."""
    request = struct.pack("16s240x", name.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        try:
            mac = fcntl.ioctl(asking, _SIOCGIFHWADDR, request)[18:24]
            address = fcntl.ioctl(asking, _SIOCGIFADDR, request)[20:24]
            mask = fcntl.ioctl(asking, _SIOCGIFNETMASK, request)[20:24]
            mtu = fcntl.ioctl(asking, _SIOCGIFMTU, request)[16:20]
        except OSError:
            return None
    prefix_length = int.from_bytes(mask).bit_count()
    return LinkSettings(
        mac=mac.hex(":"),
        address=IPv4Interface((address, prefix_length)),
        gateway=default_gateway(_ROUTES.read_text(), name),
        mtu_bytes=int.from_bytes(mtu, sys.byteorder),
    )


def default_gateway(routes: str, link: str) -> str:
    """From the kernel's table of routes (proc_pid_net(5)); empty when there is none over that link."""
    for line in routes.splitlines()[1:]:
        words = line.split()
        if (
            len(words) > 7
            and words[0] == link
            and words[1] == words[7] == "00000000"
            and int(words[3], 16) & _RTF_GATEWAY
        ):
            return socket.inet_ntoa(bytes.fromhex(words[2])[::-1])
    return ""


def put_tap_before(link: str, tap: str, *, user_id: int) -> None:
    """Make a tap that this user may open, with the link's MTU, and join it to the link.

    Effects: the device and a table of rules. They last as long as the namespace, and are its owner's to remove with it.
    Idempotent. Raises: OSError; NftFailed where the kernel has no nft_fwd_netdev.
    """
    _make_tap(tap, user_id)
    _copy_mtu(link, tap)
    with NetlinkSocket() as netlink:
        netlink.request(link_up(socket.if_nametoindex(tap)))
    with Nft() as nft:
        try:
            nft.run(joining_rules(link, tap))
        except NftFailed:
            # NOTE: only now. Where a table goes, the kernel keeps whoever closes the socket waiting for all its
            # readers: 10 ms, in which no other thread of ours gets to libnftables.
            nft.run(leaving_rules(tap) + joining_rules(link, tap))


def leaving_rules(tap: str) -> str:
    """Take the tap's table away, whether it is there or not."""
    return f"table netdev firebrick_{tap} {{}}\ndelete table netdev firebrick_{tap}\n"


def joining_rules(link: str, tap: str) -> str:
    """Make the tap's table. The kernel refuses it where there is one."""
    table = f"netdev firebrick_{tap}"
    return f"""
create table {table}
table {table} {{
    chain from_link {{
        type filter hook ingress device "{link}" priority 0; policy accept;
        fwd to "{tap}"
    }}
    chain from_tap {{
        type filter hook ingress device "{tap}" priority 0; policy accept;
        fwd to "{link}"
    }}
}}
"""


def _make_tap(name: str, user_id: int) -> None:
    descriptor = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        for request, value in ((_TUNSETOWNER, user_id), (_TUNSETGROUP, user_id), (_TUNSETPERSIST, 1)):
            fcntl.ioctl(descriptor, request, as_argument(value))
    finally:
        os.close(descriptor)


def _copy_mtu(link: str, tap: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        found = fcntl.ioctl(asking, _SIOCGIFMTU, struct.pack("16s24x", link.encode()))
        mtu_bytes = min(int.from_bytes(found[16:20], sys.byteorder), MOST_MTU_BYTES)
        fcntl.ioctl(asking, _SIOCSIFMTU, struct.pack("16si20x", tap.encode(), mtu_bytes))


def as_argument(value: int) -> int:
    """An unsigned 32-bit number as ioctl takes it from Python, whose own argument is signed."""
    return value - (1 << 32) if value >= 1 << 31 else value
