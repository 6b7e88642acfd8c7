"""What passes through a slot, and what does not."""

import asyncio
import errno
import socket
import struct
import subprocess
from ipaddress import IPv4Address, IPv4Network

import pytest

from firebrick.linux.netns import NETNS_DIR, read_sysctl
from firebrick.linux.nft import Nft
from firebrick.model.egress import CLOSED, Egress
from firebrick.network.base import INSIDE_ADDRESS, INSIDE_GATEWAY, Slot
from firebrick.network.maker import GATEWAY_MAC, GUEST_MAC
from firebrick.network.pool import NativeSlotPool
from firebrick.network.probe import probe_network
from tests.real.network.conftest import MakePool
from tests.support.lab import (
    HOST_WAN_ADDRESS,
    INTERNET_ADDRESSES,
    PUBLIC_ADDRESS,
    Lab,
    call_in,
    listen_in,
    socket_in,
)
from tests.support.wait import wait_for

pytestmark = pytest.mark.needs_root
PORT = 8000
ANSWER_S = 5.0
PROHIBITED = rf"Errno {errno.ECONNREFUSED}\]"
"""How a program meets a closed address: at once, not by a timeout."""


class Echo:
    """A TCP server in some namespace that answers each chunk, remembers its peers and counts its visitors."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.peers: list[str] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Echo":
        self.server = await asyncio.start_server(self._serve, sock=self.listener)
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername")[0])
        self.writers.append(writer)
        try:
            while chunk := await reader.read(4096):
                writer.write(chunk)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def socket_of(self, visitor: int) -> socket.socket:
        return self.writers[visitor].get_extra_info("socket")  # type: ignore[no-any-return]

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await self.server.wait_closed()


async def dial(made: socket.socket, address: str, port: int = PORT) -> None:
    async with asyncio.timeout(ANSWER_S):
        await asyncio.get_running_loop().sock_connect(made, (address, port))


async def ask(made: socket.socket, question: bytes = b"hello") -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(made, question)
    async with asyncio.timeout(ANSWER_S):
        return await loop.sock_recv(made, 4096)


def segment_bytes(end: socket.socket) -> int:
    """The largest segment that this end of a connection may send."""
    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


def set_mtu(name: str, mtu_bytes: int) -> None:
    subprocess.run(["ip", "link", "set", name, "mtu", str(mtu_bytes)], check=True)


def client(lab: Lab, slot: Slot) -> socket.socket:
    return lab.keep(socket_in(slot.netns))


async def test_the_host_reaches_a_guest_by_the_slots_address(lab: Lab, pool: NativeSlotPool) -> None:
    """A server in the guest answers at the slot's address, and sees only its gateway as the caller."""
    slot = await pool.acquire()
    async with Echo(listen_in(slot.netns, "0.0.0.0", PORT)) as guest:
        caller = lab.keep(socket_in(lab.host))
        await dial(caller, str(slot.address))
        assert await ask(caller) == b"hello"
        assert guest.peers == [INSIDE_GATEWAY]


async def test_a_guest_reaches_the_internet_as_the_host(lab: Lab, pool: NativeSlotPool) -> None:
    """What a guest opens to a public address is translated to the host's own address."""
    slot = await pool.acquire()
    async with Echo(listen_in(lab.internet, "0.0.0.0", PORT)) as internet:
        for address in (PUBLIC_ADDRESS, "1.2.3.4"):
            caller = client(lab, slot)
            await dial(caller, address)
            assert await ask(caller) == b"hello"
        assert set(internet.peers) == {HOST_WAN_ADDRESS}


async def test_large_packets_pass_between_host_and_guest_only(lab: Lab, pool: NativeSlotPool) -> None:
    """The host's segments fill a slot's links; whoever is beyond the host is met with an Ethernet's."""
    slot = await pool.acquire()
    async with Echo(listen_in(slot.netns, "0.0.0.0", PORT)) as guest:
        near = lab.keep(socket_in(lab.host))
        await dial(near, str(slot.address))
        assert await ask(near) == b"hello"
        assert min(segment_bytes(end) for end in (near, guest.socket_of(0))) > 9000
    async with Echo(listen_in(lab.internet, "0.0.0.0", PORT)) as internet:
        # As on a link of jumbo frames: the far end would take more than the way bears.
        call_in(lab.internet, lambda: set_mtu("net0", 9000))
        far = client(lab, slot)
        await dial(far, PUBLIC_ADDRESS)
        assert await ask(far) == b"hello"
        assert max(segment_bytes(end) for end in (far, internet.socket_of(0))) <= 1460


async def test_the_way_out_may_be_narrower_than_usual(lab: Lab, pool: NativeSlotPool) -> None:
    """A tunnel as uplink: both ends are told, and a megabyte passes both ways."""
    slot = await pool.acquire()
    for netns, name in ((lab.host, lab.wan), (lab.internet, "net0")):
        call_in(netns, lambda name=name: set_mtu(name, 1280))  # type: ignore[misc]
    async with Echo(listen_in(lab.internet, "0.0.0.0", PORT)) as internet:
        caller = client(lab, slot)
        await dial(caller, PUBLIC_ADDRESS)
        reader, writer = await asyncio.open_connection(sock=caller)
        writer.write(bytes(1 << 20))
        async with asyncio.timeout(ANSWER_S):
            assert await reader.readexactly(1 << 20) == bytes(1 << 20)
        assert segment_bytes(internet.socket_of(0)) <= 1240
        writer.close()


async def test_no_private_metadata_host_or_neighbour_address_is_reachable(lab: Lab, pool: NativeSlotPool) -> None:
    """Every closed address refuses at once, and none of the servers behind them has a visitor."""
    slot, neighbour = await pool.acquire(), await pool.acquire()
    closed = [address for address in INTERNET_ADDRESSES if address not in (PUBLIC_ADDRESS, "1.2.3.4")]
    closed += ["169.254.169.254", "172.20.0.9", HOST_WAN_ADDRESS, INSIDE_GATEWAY]
    closed += [str(address) for one in (slot, neighbour) for address in (one.address, one.address - 1)]
    async with (
        Echo(listen_in(lab.internet, "0.0.0.0", PORT)) as internet,
        Echo(listen_in(lab.host, "0.0.0.0", PORT)) as host,
        Echo(listen_in(neighbour.netns, "0.0.0.0", PORT)) as other,
    ):
        for address in closed:
            with pytest.raises(OSError, match=PROHIBITED):
                await dial(client(lab, slot), address)
        assert (internet.peers, host.peers, other.peers) == ([], [], [])


async def test_denied_internet_closes_what_is_open_too(lab: Lab, pool: NativeSlotPool) -> None:
    """Then nothing passes outwards, not even in a flow that was open; the edge still gets answers."""
    slot = await pool.acquire()
    async with (
        Echo(listen_in(lab.internet, "0.0.0.0", PORT)) as internet,
        Echo(listen_in(slot.netns, "0.0.0.0", PORT)),
    ):
        before, edge = client(lab, slot), lab.keep(socket_in(lab.host))
        await dial(before, PUBLIC_ADDRESS)
        await dial(edge, str(slot.address))
        assert await ask(before) == b"hello"

        await pool.restrict(slot, CLOSED)

        with pytest.raises(ConnectionResetError):
            await ask(before, b"late")
        with pytest.raises(OSError, match=PROHIBITED):
            await dial(client(lab, slot), PUBLIC_ADDRESS)
        assert await ask(edge) == b"hello"
        assert len(internet.peers) == 1
        await pool.release(slot)


async def test_a_recycled_slot_has_its_internet_back(lab: Lab, pool: NativeSlotPool) -> None:
    """A restriction ends with the guest it was for."""
    slot = await pool.acquire()
    await pool.restrict(slot, CLOSED)
    await pool.release(slot)
    await wait_for(lambda: pool.free_count == 2)
    again = {(await pool.acquire()).index for _ in range(2)}
    assert slot.index in again
    async with Echo(listen_in(lab.internet, "0.0.0.0", PORT)):
        await dial(client(lab, slot), PUBLIC_ADDRESS)


async def test_a_released_slot_cuts_the_connections_to_it(lab: Lab, pool: NativeSlotPool) -> None:
    """Who waits on the host for an answer of a guest that is gone learns of it at once."""
    slot = await pool.acquire()
    async with Echo(listen_in(slot.netns, "0.0.0.0", PORT)):
        caller = lab.keep(socket_in(lab.host))
        await dial(caller, str(slot.address))
        assert await ask(caller) == b"hello"
        await pool.release(slot)
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(ANSWER_S):
                await asyncio.get_running_loop().sock_recv(caller, 1)


async def test_no_byte_for_the_old_guest_reaches_the_new_one(lab: Lab, pool: NativeSlotPool) -> None:
    """The peers of an earlier guest go on sending; the next guest of the slot does not see one packet of it."""
    slot = await pool.acquire()
    udp = lab.keep(listen_in(lab.internet, PUBLIC_ADDRESS, 5353, socket.SOCK_DGRAM))
    old = lab.keep(listen_in(slot.netns, "0.0.0.0", 4444, socket.SOCK_DGRAM))
    loop = asyncio.get_running_loop()
    await loop.sock_sendto(old, b"question", (PUBLIC_ADDRESS, 5353))
    async with asyncio.timeout(ANSWER_S):
        _, translated = await loop.sock_recvfrom(udp, 100)
    await loop.sock_sendto(udp, b"SECRET early", translated)
    async with asyncio.timeout(ANSWER_S):
        assert await loop.sock_recv(old, 100) == b"SECRET early"
    await pool.release(slot)
    await wait_for(lambda: pool.free_count == 2)
    taken = [await pool.acquire(), await pool.acquire()]
    assert slot in taken

    tap = lab.keep(socket_in(slot.netns, socket.SOCK_RAW, socket.AF_PACKET))
    tap.bind(("eth0", 3))
    for _ in range(5):
        await loop.sock_sendto(udp, b"SECRET late", translated)
    # A packet that must arrive, sent after those that must not: once it is there, they would have been too.
    async with Echo(listen_in(slot.netns, "0.0.0.0", PORT)):
        caller = lab.keep(socket_in(lab.host))
        await dial(caller, str(slot.address))
        await ask(caller, b"MARKER")
    seen = b"".join(_queued(tap))
    assert b"MARKER" in seen
    assert b"SECRET" not in seen


def _queued(tap: socket.socket) -> list[bytes]:
    packets = []
    while True:
        try:
            packets.append(tap.recv(65535))
        except BlockingIOError:
            return packets


async def test_a_spoofed_source_address_goes_nowhere(lab: Lab, pool: NativeSlotPool) -> None:
    """A packet with another source than the guest's own is dropped in the slot, whoever it pretends to be."""
    slot, neighbour = await pool.acquire(), await pool.acquire()
    udp = lab.keep(listen_in(lab.internet, PUBLIC_ADDRESS, 5353, socket.SOCK_DGRAM))
    raw = lab.keep(socket_in(slot.netns, socket.SOCK_RAW, socket.AF_PACKET))
    raw.bind(("eth0", 0x0800))
    for source in (str(neighbour.address), "10.1.2.3", "169.254.0.20"):
        raw.send(_udp_frame(source, PUBLIC_ADDRESS, 5353, b"SPOOFED"))
    raw.send(_udp_frame(INSIDE_ADDRESS, PUBLIC_ADDRESS, 5353, b"HONEST"))
    async with asyncio.timeout(ANSWER_S):
        assert await asyncio.get_running_loop().sock_recv(udp, 100) == b"HONEST"
    with pytest.raises(BlockingIOError):
        udp.recv(100)


def _udp_frame(source: str, destination: str, port: int, payload: bytes) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 1, 0, 64, socket.IPPROTO_UDP, 0) + ends
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    macs = bytes.fromhex((GATEWAY_MAC + GUEST_MAC).replace(":", ""))
    return macs + b"\x08\x00" + header + struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload


async def test_a_firewall_that_drops_forwarding_leaves_the_edge_working(lab: Lab, pool: NativeSlotPool) -> None:
    """With Docker's forward policy the host still reaches guests, and the probe names the chain in the way."""
    with Nft() as nft:
        nft.run("table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }")
    slot = await pool.acquire()
    async with Echo(listen_in(slot.netns, "0.0.0.0", PORT)):
        caller = lab.keep(socket_in(lab.host))
        await dial(caller, str(slot.address))
        assert await ask(caller) == b"hello"
    facts = await probe_network()
    assert facts.forward_drops == ("ip filter FORWARD",)
    assert (facts.netns_error, facts.veth_error, facts.nft_error) == ("", "", "")
    assert facts.default_route_links == (lab.wan,)


async def test_the_inside_of_every_slot_is_the_same(lab: Lab, pool: NativeSlotPool) -> None:
    """Address, gateway and both MACs do not depend on the slot, and ping and low ports need no capability."""

    for slot in [await pool.acquire(), await pool.acquire()]:
        assert slot.netns.parent == NETNS_DIR
        assert call_in(slot.netns, lambda: read_sysctl("ipv4/ping_group_range")).split() == ["0", "2147483647"]
        assert call_in(slot.netns, lambda: read_sysctl("ipv4/ip_unprivileged_port_start")) == "0"
        assert call_in(slot.netns, lambda: read_sysctl("ipv6/conf/eth0/disable_ipv6")) == "1"
        async with Echo(listen_in(slot.netns, INSIDE_ADDRESS, 80)):
            caller = lab.keep(socket_in(lab.host))
            await dial(caller, str(slot.address), 80)


def egress(allow: str = "", deny: str = "", dns: str = "") -> Egress:
    return Egress(
        allow=tuple(map(IPv4Network, allow.split())),
        deny=tuple(map(IPv4Network, deny.split())),
        dns=tuple(map(IPv4Address, dns.split())),
    )


async def test_allowed_networks_pass_what_is_denied_does_not(lab: Lab, pool: NativeSlotPool) -> None:
    """Allow beats deny; name servers answer on their port alone; private addresses stay closed though allowed."""
    slot = await pool.acquire()
    await pool.restrict(slot, egress(f"{PUBLIC_ADDRESS}/32 10.0.0.0/8 169.254.0.0/16", "0.0.0.0/0", "1.2.3.4"))
    async with Echo(listen_in(lab.internet, "0.0.0.0", PORT)) as internet, Echo(listen_in(lab.internet, "0.0.0.0", 53)):
        caller, asker = client(lab, slot), client(lab, slot)
        await dial(caller, PUBLIC_ADDRESS)
        assert await ask(caller) == b"hello"
        await dial(asker, "1.2.3.4", 53)
        assert await ask(asker) == b"hello"
        for address in ("1.2.3.4", "10.1.2.3", "169.254.169.254", HOST_WAN_ADDRESS):
            with pytest.raises(OSError, match=PROHIBITED):
                await dial(client(lab, slot), address)
        assert len(internet.peers) == 1


async def test_a_denied_network_leaves_the_rest_open(lab: Lab, pool: NativeSlotPool) -> None:
    """And overlapping entries are no error."""
    slot = await pool.acquire()
    await pool.restrict(slot, egress("", "1.2.3.0/24 1.2.3.4/32 1.0.0.0/8"))
    async with Echo(listen_in(lab.internet, "0.0.0.0", PORT)):
        await dial(client(lab, slot), PUBLIC_ADDRESS)
        with pytest.raises(OSError, match=PROHIBITED):
            await dial(client(lab, slot), "1.2.3.4")


async def test_rules_are_replaced_while_connections_are_open(lab: Lab, pool: NativeSlotPool) -> None:
    """What is no longer allowed is cut, in both directions; what is lifted passes again; other slots see nothing."""
    slot, neighbour = await pool.acquire(), await pool.acquire()
    async with Echo(listen_in(lab.internet, "0.0.0.0", PORT)) as internet:
        kept, cut, other = client(lab, slot), client(lab, slot), client(lab, neighbour)
        await dial(kept, PUBLIC_ADDRESS)
        await dial(cut, "1.2.3.4")
        await dial(other, "1.2.3.4")
        for caller in (kept, cut, other):
            assert await ask(caller) == b"hello"
        await pool.restrict(slot, egress(deny="1.2.3.4/32"))
        with pytest.raises(ConnectionResetError):
            await ask(cut, b"late")
        assert await ask(kept) == b"hello"
        assert await ask(other) == b"hello"
        await pool.restrict(slot, egress())
        again = client(lab, slot)
        await dial(again, "1.2.3.4")
        assert await ask(again) == b"hello"
        assert len(internet.peers) == 4


async def test_rules_outlive_the_node_agent(lab: Lab, make_pool: MakePool) -> None:
    """The next pool adopts the slot with its guest's rules, and lifts them when the guest is gone."""
    pool = make_pool(2)
    await pool.open(frozenset())
    await wait_for(lambda: pool.free_count == 2)
    slot = await pool.acquire()
    await pool.restrict(slot, egress(deny="1.2.3.4/32"))
    await pool.close()
    successor = make_pool(2)
    await successor.open(frozenset((slot.index,)))
    async with Echo(listen_in(lab.internet, "0.0.0.0", PORT)):
        with pytest.raises(OSError, match=PROHIBITED):
            await dial(client(lab, slot), "1.2.3.4")
        await successor.release(successor.slot(slot.index))
        await wait_for(lambda: successor.free_count == 2)
        for taken in (await successor.acquire(), await successor.acquire()):
            await dial(client(lab, taken), "1.2.3.4")
