"""Connections by name: what passes through a slot whose rules allow names, and what is cut."""

import asyncio
import errno
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import dns.message
import pytest

from firebrick.linux.nft import Nft
from firebrick.model.egress import EVERYWHERE, Egress
from firebrick.network.base import INSIDE_GATEWAY, NetworkFailed, Refusal, Slot
from firebrick.network.layout import Layout
from firebrick.network.name_filter.decision import Reason
from firebrick.network.name_filter.process import OPEN_COUNT
from firebrick.network.pool import NativeSlotPool
from firebrick.network.rules import FILTER_PORT
from tests.real.network.conftest import PREFIX, MakePool
from tests.real.network.test_slot_traffic import ANSWER_S, PROHIBITED, Echo, ask, client, dial
from tests.support.lab import HOST_WAN_ADDRESS, PUBLIC_ADDRESS, Lab, call_in, listen_in, socket_in
from tests.support.name_server import NameServer, answering, client_hello, filters
from tests.support.wait import wait_for

pytestmark = pytest.mark.needs_root

NAME_SERVER = "1.2.3.4"
NAMES = {
    "allowed.test": [PUBLIC_ADDRESS],
    "deep.below.test": [PUBLIC_ADDRESS],
    "other.test": [PUBLIC_ADDRESS],
    "private.test": ["10.99.0.5", "192.168.77.1", "169.254.169.254"],
    "host.test": [HOST_WAN_ADDRESS],
    "mixed.test": ["10.99.0.5", PUBLIC_ADDRESS],
    "silent.test": [PUBLIC_ADDRESS],
}
SOMEWHERE = "1.2.3.4"
"""Where guests dial in these tests: another address than their name has, as if their own name server lied."""


def names(*allowed: str, allow: str = "") -> Egress:
    networks = tuple(map(IPv4Network, allow.split()))
    return Egress(allow=networks, deny=(EVERYWHERE,), names=allowed, default_dns=True)


def request(host: str, rest: bytes = b"") -> bytes:
    return b"GET / HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n" + rest


@pytest.fixture
async def name_server(lab: Lab) -> AsyncIterator[NameServer]:
    with answering(lab.keep(listen_in(lab.internet, NAME_SERVER, 53, socket.SOCK_DGRAM)), NAMES) as server:
        yield server


@pytest.fixture
async def web(lab: Lab) -> AsyncIterator[Echo]:
    """A server on port 80 of every address of the internet; it gives back what it is sent."""
    async with Echo(listen_in(lab.internet, "0.0.0.0", 80)) as server:
        yield server


@pytest.fixture
async def tls(lab: Lab) -> AsyncIterator[Echo]:
    async with Echo(listen_in(lab.internet, "0.0.0.0", 443)) as server:
        yield server


@pytest.fixture
async def named_pool(make_pool: MakePool, name_server: NameServer) -> NativeSlotPool:
    pool = make_pool(2, name_servers=(IPv4Address(NAME_SERVER),))
    await pool.open(frozenset())
    await wait_for(lambda: pool.free_count == 2)
    return pool


async def say(lab: Lab, slot: Slot, data: bytes, port: int = 80, address: str = SOMEWHERE) -> bytes:
    """Dial from the guest, send, and return what comes back; nothing for a connection that was cut."""
    caller = client(lab, slot)
    await dial(caller, address, port)
    try:
        return await ask(caller, data)
    except ConnectionResetError:
        return b""


async def test_an_allowed_name_is_dialled_wherever_the_guest_thinks_it_is(
    lab: Lab, named_pool: NativeSlotPool, web: Echo, tls: Echo, name_server: NameServer
) -> None:
    """By Host on port 80 and by SNI on 443; the address is the one that our name servers tell, from the host's own."""
    slot = await named_pool.acquire()
    await named_pool.restrict(slot, names("allowed.test", "*.below.test"))
    asked = request("Allowed.TEST.:80", b"body")
    assert await say(lab, slot, asked) == asked
    hello = client_hello("deep.below.test")
    assert await say(lab, slot, hello, 443) == hello
    assert web.peers == tls.peers == [HOST_WAN_ADDRESS]
    assert [writer.get_extra_info("sockname")[0] for writer in web.writers + tls.writers] == [PUBLIC_ADDRESS] * 2
    assert set(name_server.asked) == {"allowed.test", "deep.below.test"}


@pytest.mark.parametrize(
    ("data", "port"),
    [
        (request("other.test"), 80),
        (request("below.test"), 80),
        (request(PUBLIC_ADDRESS), 80),
        (b"GET / HTTP/1.1\r\nHost: allowed.test\r\nHost: other.test\r\n\r\n", 80),
        (b"GET http://other.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n", 80),
        (b"SSH-2.0-OpenSSH_9.6\r\n", 80),
        (client_hello("other.test"), 443),
        (client_hello(None), 443),
        (request("allowed.test"), 443),
        (request("private.test"), 80),
        (request("host.test"), 80),
        (request("absent.test"), 80),
    ],
)
async def test_what_is_not_allowed_by_name_is_cut(
    lab: Lab, named_pool: NativeSlotPool, web: Echo, tls: Echo, data: bytes, port: int
) -> None:
    """Another name, none, one that leads to a private address or to this host: reset, and no server had a visitor."""
    slot = await named_pool.acquire()
    await named_pool.restrict(slot, names("allowed.test", "*.below.test", "private.test", "host.test", "absent.test"))
    async with Echo(listen_in(lab.host, "0.0.0.0", port)) as host:
        assert await say(lab, slot, data, port) == b""
        assert (web.peers, tls.peers, host.peers) == ([], [], [])


async def test_the_rest_stays_as_denied_as_it_was(lab: Lab, named_pool: NativeSlotPool, web: Echo) -> None:
    """Other ports, QUIC, closed addresses and the filter's own port are refused at once; name servers answer; an
    allowed address needs no name."""
    slot = await named_pool.acquire()
    await named_pool.restrict(slot, names("*", allow=f"{PUBLIC_ADDRESS}/32"))
    for address, port in (
        (SOMEWHERE, 8000), ("10.99.0.5", 80), ("169.254.169.254", 80), (HOST_WAN_ADDRESS, 8000),
        (INSIDE_GATEWAY, FILTER_PORT), (str(slot.address), FILTER_PORT),
    ):  # fmt: skip
        with pytest.raises(OSError, match=PROHIBITED):
            await dial(client(lab, slot), address, port)
    quic = lab.keep(socket_in(slot.netns, socket.SOCK_DGRAM))
    await dial(quic, SOMEWHERE, 443)
    with pytest.raises(OSError, match=f"Errno {errno.EHOSTUNREACH}]"):
        await ask(quic, b"QUIC")
    resolver = lab.keep(socket_in(slot.netns, socket.SOCK_DGRAM))
    await dial(resolver, NAME_SERVER, 53)
    query = dns.message.make_query("allowed.test", "A").to_wire()
    assert IPv4Address(PUBLIC_ADDRESS).packed in await ask(resolver, query)
    assert await say(lab, slot, b"no head at all", address=PUBLIC_ADDRESS) == b"no head at all"


async def test_half_a_close_is_passed_on(lab: Lab, named_pool: NativeSlotPool) -> None:
    """A server may answer after its client has said all it will."""
    slot = await named_pool.acquire()
    await named_pool.restrict(slot, names("allowed.test"))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = await reader.read()
        writer.write(b"%d" % len(got))
        writer.close()

    server = await asyncio.start_server(answer, sock=listen_in(lab.internet, PUBLIC_ADDRESS, 80))
    async with server:
        caller = client(lab, slot)
        await dial(caller, SOMEWHERE, 80)
        loop = asyncio.get_running_loop()
        sent = request("allowed.test", bytes(3_000_000))
        await loop.sock_sendall(caller, sent)
        caller.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(ANSWER_S):
            assert await loop.sock_recv(caller, 100) == b"%d" % len(sent)
            assert await loop.sock_recv(caller, 100) == b""


async def test_an_update_cuts_what_it_no_longer_allows(lab: Lab, named_pool: NativeSlotPool, web: Echo) -> None:
    """And leaves the rest open: by another name, or because all is open now. Another slot sees nothing of it."""
    slot, neighbour = await named_pool.acquire(), await named_pool.acquire()
    await named_pool.restrict(slot, names("allowed.test", "other.test"))
    await named_pool.restrict(neighbour, names("other.test"))
    kept, cut, theirs = client(lab, slot), client(lab, slot), client(lab, neighbour)
    for caller, name in ((kept, "allowed.test"), (cut, "other.test"), (theirs, "other.test")):
        await dial(caller, SOMEWHERE, 80)
        assert await ask(caller, request(name)) == request(name)
    await named_pool.restrict(slot, names("allowed.test"))
    with pytest.raises(ConnectionResetError):
        await ask(cut)
    await named_pool.restrict(slot, Egress())
    assert await ask(kept) == b"hello"
    assert await ask(theirs) == b"hello"
    assert await say(lab, slot, b"anything") == b"anything"
    await named_pool.restrict(slot, Egress(deny=(EVERYWHERE,)))
    with pytest.raises(ConnectionResetError):
        await ask(kept)
    with pytest.raises(OSError, match=PROHIBITED):
        await dial(client(lab, slot), SOMEWHERE, 80)


async def test_without_names_there_is_no_filter(lab: Lab, named_pool: NativeSlotPool, web: Echo, instance: str) -> None:
    """Who uses no names pays for none."""
    slot = await named_pool.acquire()
    await named_pool.restrict(slot, Egress(deny=(EVERYWHERE,), allow=(IPv4Network(f"{PUBLIC_ADDRESS}/32"),)))
    assert await say(lab, slot, b"hello", address=PUBLIC_ADDRESS) == b"hello"
    assert filters(instance) == []


async def test_a_killed_filter_opens_nothing_and_comes_back_with_the_rules(
    lab: Lab, named_pool: NativeSlotPool, web: Echo, instance: str
) -> None:
    """kill -9: what was open is cut, nothing passes meanwhile, and who waits is served by the next one."""
    slot = await named_pool.acquire()
    await named_pool.restrict(slot, names("allowed.test"))
    before, waiting = client(lab, slot), client(lab, slot)
    await dial(before, SOMEWHERE, 80)
    assert await ask(before, request("allowed.test")) == request("allowed.test")
    (pid,) = filters(instance)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ConnectionResetError):
        await ask(before)
    await dial(waiting, SOMEWHERE, 80)
    assert await say(lab, slot, request("other.test")) == b""
    assert await ask(waiting, request("allowed.test")) == request("allowed.test")
    assert len(web.peers) == 2
    assert filters(instance) not in ([], [pid])


async def test_the_filter_is_nobody_and_reaches_nothing_private(
    lab: Lab, named_pool: NativeSlotPool, instance: str
) -> None:
    """No root, no group, no capability, no child; the host's rules hold for it too."""
    slot = await named_pool.acquire()
    await named_pool.restrict(slot, names("allowed.test"))
    (pid,) = filters(instance)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    user = Layout(instance=instance, prefix=PREFIX).filter_uid
    assert {status["Uid"], status["Gid"]} == {"\t".join([str(user)] * 4)}
    assert (status["Groups"].strip(), int(status["CapEff"], 16), status["NoNewPrivs"]) == ("", 0, "1")
    reached = await asyncio.to_thread(_reaches_as, lab, user)
    assert reached == {(PUBLIC_ADDRESS, 80): True, ("10.99.0.5", 80): False, (HOST_WAN_ADDRESS, 80): False,
                       (PUBLIC_ADDRESS, 8000): False, ("127.0.0.1", 80): False}  # fmt: skip


def _reaches_as(lab: Lab, user: int) -> dict[tuple[str, int], bool]:
    """What a process of this user can connect to: a child of ours takes its id."""
    targets = [
        (PUBLIC_ADDRESS, 80),
        ("10.99.0.5", 80),
        (HOST_WAN_ADDRESS, 80),
        (PUBLIC_ADDRESS, 8000),
        ("127.0.0.1", 80),
    ]
    servers = [listen_in(place, "0.0.0.0", port) for place in (lab.host, lab.internet) for port in (80, 8000)]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            from firebrick.linux import netns

            netns.enter(lab.host)
            os.setresuid(user, user, user)
            for target in targets:
                with socket.socket() as made:
                    made.settimeout(ANSWER_S)
                    os.write(writing, b"1" if made.connect_ex(target) == 0 else b"0")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    answers = os.read(reading, 100)
    for end in (reading, writing):
        os.close(end)
    for server in servers:
        server.close()
    return {target: answer == ord("1") for target, answer in zip(targets, answers, strict=True)}


async def test_rules_by_name_outlive_the_node_agent(
    lab: Lab, make_pool: MakePool, name_server: NameServer, web: Echo, instance: str
) -> None:
    """The next pool goes on with them, in a filter of its own; they end with the slot."""
    servers = (IPv4Address(NAME_SERVER),)
    pool = make_pool(2, name_servers=servers)
    await pool.open(frozenset())
    await wait_for(lambda: pool.free_count == 2)
    slot = await pool.acquire()
    await pool.restrict(slot, names("allowed.test"))
    await pool.close()
    assert filters(instance) == []
    with pytest.raises(OSError, match=PROHIBITED):
        await dial(client(lab, slot), SOMEWHERE, 80)
    successor = make_pool(2, name_servers=servers)
    await successor.open(frozenset((slot.index,)))
    assert await say(lab, slot, request("allowed.test")) == request("allowed.test")
    assert await say(lab, slot, request("other.test")) == b""
    await successor.release(successor.slot(slot.index))
    await wait_for(lambda: successor.free_count == 2)
    assert not list(Path(f"/run/firebrick/{instance}/names").iterdir())
    for taken in (await successor.acquire(), await successor.acquire()):
        assert await say(lab, taken, b"anything") == b"anything"


async def test_a_released_slot_has_no_connection_left(lab: Lab, named_pool: NativeSlotPool, web: Echo) -> None:
    """The server sees the end of what the guest had open."""
    slot = await named_pool.acquire()
    await named_pool.restrict(slot, names("allowed.test"))
    caller = client(lab, slot)
    await dial(caller, SOMEWHERE, 80)
    assert await ask(caller, request("allowed.test")) == request("allowed.test")
    await named_pool.release(slot)
    await wait_for(lambda: web.writers[0].is_closing())
    await wait_for(lambda: named_pool.free_count == 2)


async def test_refusals_are_told_and_bounded(lab: Lab, named_pool: NativeSlotPool, web: Echo) -> None:
    """Each kind once, however often a guest tries."""
    told: list[Refusal] = []
    named_pool.on_refused(told.append)
    slot = await named_pool.acquire()
    await named_pool.restrict(slot, names("allowed.test", "private.test", "mixed.test"))
    for name in ("other.test", "other.test", "private.test", "other.test"):
        assert await say(lab, slot, request(name)) == b""
    assert await say(lab, slot, request("mixed.test")) == request("mixed.test")
    await wait_for(lambda: len(told) == 2)
    assert [(item.slot_index, item.name, item.port, item.reason) for item in told] == [
        (slot.index, "other.test", 80, Reason.NOT_ALLOWED),
        (slot.index, "private.test", 80, Reason.CLOSED),
    ]


async def test_a_guest_with_too_many_connections_stops_only_itself(
    lab: Lab, named_pool: NativeSlotPool, web: Echo
) -> None:
    """One more than it may have is cut, and told; those it has and its neighbour's go on."""
    told: list[Refusal] = []
    named_pool.on_refused(told.append)
    slot, neighbour = await named_pool.acquire(), await named_pool.acquire()
    for one in (slot, neighbour):
        await named_pool.restrict(one, names("allowed.test"))
    callers = [client(lab, slot) for _ in range(OPEN_COUNT)]
    # Each is answered: one that says nothing would be cut after a while, and a slow machine has less room for others.
    for caller in callers:
        await dial(caller, SOMEWHERE, 80)
        assert await ask(caller, request("allowed.test")) == request("allowed.test")
    # It may be cut so soon that the dial itself is told.
    with suppress(ConnectionResetError):
        assert await say(lab, slot, request("allowed.test")) == b""
    assert await say(lab, neighbour, request("allowed.test")) == request("allowed.test")
    assert await ask(callers[0]) == b"hello"
    await wait_for(lambda: [item.reason for item in told] == [Reason.TOO_MANY])


async def test_no_bytes_of_a_guest_stop_the_filter(
    lab: Lab, named_pool: NativeSlotPool, web: Echo, tls: Echo, instance: str
) -> None:
    """Whatever comes first, the process that answers the next guest is the same."""
    slot = await named_pool.acquire()
    await named_pool.restrict(slot, names("allowed.test"))
    before = filters(instance)
    rubbish = random.Random(7)
    whole = {80: request("allowed.test"), 443: client_hello("allowed.test")}
    for port, head in whole.items():
        for _ in range(40):
            cut = rubbish.randrange(len(head))
            noise = rubbish.randbytes(rubbish.choice((1, 60, 2000)))
            with client(lab, slot) as caller:
                await dial(caller, SOMEWHERE, port)
                await asyncio.get_running_loop().sock_sendall(caller, head[:cut] + noise)
    for port, head in whole.items():
        assert await say(lab, slot, head, port) == head
    assert filters(instance) == before


async def test_a_slot_of_an_earlier_version_takes_all_but_names(lab: Lab, named_pool: NativeSlotPool) -> None:
    """A sandbox that outlived an upgrade: its other rules still change, and names are refused, not ignored."""
    slot = await named_pool.acquire()
    namespace = slot.netns.parent / slot.netns.name.replace("-g", "-s")
    call_in(namespace, _forget_names)
    await named_pool.restrict(slot, Egress(deny=(EVERYWHERE,)))
    call_in(namespace, _forget_names)
    with pytest.raises(NetworkFailed):
        await named_pool.restrict(slot, names("allowed.test"))
    for port in (80, 8000):
        with pytest.raises(OSError, match=PROHIBITED):
            await dial(client(lab, slot), SOMEWHERE, port)


def _forget_names() -> None:
    with Nft() as nft:
        nft.run("flush chain inet firebrick arriving; delete set inet firebrick named_ports")
