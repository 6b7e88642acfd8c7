"""Slots outlive our process, survive its death at any step, and stay clear of what is not ours."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv4Network

import pytest

from firebrick.linux import netns
from firebrick.linux.netlink import NetlinkSocket, VethEnd, address_add, link_delete, veth_add
from firebrick.linux.netns import in_own_thread
from firebrick.linux.nft import Nft
from firebrick.model.errors import Invalid
from firebrick.network.pool import NativeSlotPool
from tests.real.network.conftest import PREFIX, MakePool
from tests.real.network.test_slot_traffic import Echo, ask, dial
from tests.support.lab import Lab, call_in, lab_host, listen_in, socket_in
from tests.support.wait import wait_for

pytestmark = pytest.mark.needs_root


async def filled(pool: NativeSlotPool, count: int) -> None:
    await wait_for(lambda: pool.free_count == count, status=lambda: pool.free_count)


async def answers(lab: Lab, pool: NativeSlotPool) -> None:
    """Take a slot, reach a server in it, give it back."""
    slot = await pool.acquire()
    async with Echo(listen_in(slot.netns, "0.0.0.0", 8000)):
        caller = lab.keep(socket_in(lab.host))
        await dial(caller, str(slot.address))
        assert await ask(caller) == b"hello"
    await pool.release(slot)


def namespace_inodes(instance: str) -> dict[str, int]:
    return {name: netns.inode(name) for name in netns.names() if name.startswith(f"fb-{instance}-")}


async def test_a_restart_adopts_ready_slots_and_leaves_living_ones_alone(
    lab: Lab, make_pool: MakePool, instance: str
) -> None:
    """The next process takes ready slots as they are; a connection into a slot in use never notices."""
    first = make_pool(3)
    await first.open(frozenset())
    await filled(first, 3)
    slot = await first.acquire()
    before = namespace_inodes(instance)
    async with Echo(listen_in(slot.netns, "0.0.0.0", 8000)):
        caller = lab.keep(socket_in(lab.host))
        await dial(caller, str(slot.address))
        await first.close()

        second = make_pool(3)
        await second.open(frozenset({slot.index}))

        assert second.free_count == 2
        assert second.slot(slot.index) == slot
        assert namespace_inodes(instance) == before
        assert await ask(caller) == b"hello"
    others = {(await second.acquire()).index for _ in range(2)}
    assert slot.index not in others


async def test_a_slot_taken_by_a_process_that_died_is_made_anew(make_pool: MakePool, instance: str) -> None:
    """Whatever was begun in a slot that no living machine claims is gone before anyone else gets it."""
    first = make_pool(1)
    await first.open(frozenset())
    await filled(first, 1)
    slot = await first.acquire()
    before = namespace_inodes(instance)
    await first.close()

    second = make_pool(1)
    await second.open(frozenset())
    assert second.free_count == 0
    await filled(second, 1)
    assert (await second.acquire()).index == slot.index
    assert not set(before.values()) & set(namespace_inodes(instance).values())


async def test_slots_beyond_a_smaller_pool_go_when_their_machines_end(make_pool: MakePool, instance: str) -> None:
    """A pool made smaller keeps what lives and removes the rest."""
    first = make_pool(4)
    await first.open(frozenset())
    await filled(first, 4)
    await first.close()

    second = make_pool(1)
    await second.open(frozenset({3}))
    await wait_for(
        lambda: {f"fb-{instance}-g{i}" for i in (0, 3)} == {n for n in namespace_inodes(instance) if "-g" in n}
    )
    await second.release(second.slot(3))
    await wait_for(lambda: {f"fb-{instance}-g0", f"fb-{instance}-s0"} == set(namespace_inodes(instance)))


async def test_twenty_are_taken_at_once_in_a_blink(make_pool: MakePool) -> None:
    """Twenty callers get twenty different slots, and taking one from a full pool makes nothing."""
    pool = make_pool(20)
    await pool.open(frozenset())
    await filled(pool, 20)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(pool.acquire()) for _ in range(20)]
    assert len({task.result().address for task in tasks}) == 20


async def test_who_comes_too_early_gets_the_next_slot_that_is_ready(make_pool: MakePool) -> None:
    """With an empty pool, acquire waits for the refill; a caller that gave up leaves its slot to the others."""
    pool = make_pool(4)
    await pool.open(frozenset())
    given_up = asyncio.ensure_future(pool.acquire())
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(pool.acquire()) for _ in range(4)]
        await asyncio.sleep(0)
        given_up.cancel()
    assert {task.result().index for task in tasks} == {0, 1, 2, 3}


async def test_a_process_left_in_a_slot_does_not_outlive_it(pool: NativeSlotPool) -> None:
    """After release nothing runs in the slot's old namespace."""
    slot = await pool.acquire()
    left = call_in(slot.netns, lambda: subprocess.Popen(["sleep", "600"]))
    await pool.release(slot)
    assert await asyncio.to_thread(left.wait, 10) == -signal.SIGKILL


async def test_a_slot_whose_guest_took_its_address_away_is_whole_again(lab: Lab, pool: NativeSlotPool) -> None:
    """gVisor moves the address of eth0 into its own stack; the next guest finds it again."""
    slot = await pool.acquire()
    call_in(slot.netns, lambda: subprocess.run(["ip", "address", "flush", "dev", "eth0"], check=True))
    await pool.release(slot)
    await filled(pool, 2)
    await answers(lab, pool)
    await answers(lab, pool)


@pytest.mark.parametrize("fails_at", ["slot rules", "links", "guest addresses", "host link", "ready mark", "unlinked"])
async def test_a_step_that_fails_once_is_made_good(lab: Lab, make_pool: MakePool, fails_at: str) -> None:
    """An error of the kernel at any step costs a retry: the pieces are removed and the slot is made."""
    failures = [OSError("injected")]

    def fail_once(step: str) -> None:
        if step == fails_at and failures:
            raise failures.pop()

    pool = make_pool(1, at_step_for_test_purposes_only=fail_once)
    await pool.open(frozenset())
    await filled(pool, 1)
    await pool.release(await pool.acquire())
    await filled(pool, 1)
    assert not failures
    await answers(lab, pool)


def test_a_process_killed_at_any_step_leaves_what_the_next_one_mends(instance: str) -> None:
    """kill -9 at the n-th step of making and resetting a slot, for every n: the next process mends it all."""
    with lab_host(instance) as lab:
        steps = 0
        while _dies_at(instance, steps + 1):
            steps += 1
            asyncio.run(_mends(lab, instance))
        # The last child got to the end and left a whole slot.
        asyncio.run(_mends(lab, instance))
        assert steps > 20


def _dies_at(instance: str, number: int) -> bool:
    """Make, use and reset a slot in a child that kills itself at its n-th step; False when it got to the end."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(_lives(instance, _killer(number)))
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def _killer(number: int) -> Callable[[str], None]:
    passed = 0

    def step(_: str) -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return step


async def _lives(instance: str, at_step: Callable[[str], None]) -> None:
    pool = NativeSlotPool(instance=instance, prefix=PREFIX, size=1, at_step_for_test_purposes_only=at_step)
    await pool.open(frozenset())
    await filled(pool, 1)
    await pool.release(await pool.acquire())
    await filled(pool, 1)
    await pool.close()


async def _mends(lab: Lab, instance: str) -> None:
    pool = NativeSlotPool(instance=instance, prefix=PREFIX, size=1)
    await pool.open(frozenset())
    await filled(pool, 1)
    await answers(lab, pool)
    await pool.destroy_all()
    assert namespace_inodes(instance) == {}


async def test_foreign_objects_with_similar_names_are_not_touched(lab: Lab, make_pool: MakePool, instance: str) -> None:
    """Names that only resemble ours stay: in a dirty start, in a release and when all of ours is removed."""
    foreign_spaces = [f"fb-{instance}-s01", f"fb-{instance}-g1-old", f"fb-{instance}-x1", f"fb-{instance}x-s1"]
    foreign_links = [f"fb{instance}h01", f"fb{instance}h1x"]
    for name in foreign_spaces:
        await in_own_thread(lambda name=name: (netns.prepare_names(), netns.unshare(), netns.name_own(name)))
    with NetlinkSocket() as host:
        host.request(veth_add(VethEnd(name=foreign_links[0]), VethEnd(name=foreign_links[1])))
    with Nft() as nft:
        nft.run(f"table inet firebrick_{instance}x {{}}")
    try:
        pool = make_pool(2)
        await pool.open(frozenset())
        await filled(pool, 2)
        await pool.release(await pool.acquire())
        await filled(pool, 2)
        await pool.destroy_all()
        with NetlinkSocket() as host:
            links = {link.name for link in host.links()}
        with Nft() as nft:
            tables = nft.run("list tables").split()
        assert sorted(name for name in netns.names() if instance in name) == sorted(foreign_spaces)
        assert {name for name in links if instance in name} == set(foreign_links)
        assert [name for name in tables if instance in name] == [f"firebrick_{instance}x"]
    finally:
        for name in foreign_spaces:
            netns.remove(name)
        with NetlinkSocket() as host:
            host.request(link_delete(socket.if_nametoindex(foreign_links[0])))
        with Nft() as nft:
            nft.run(f"delete table inet firebrick_{instance}x")


async def test_forwarding_is_on_only_where_needed_and_only_while_we_live(lab: Lab, make_pool: MakePool) -> None:
    """The machine's ip_forward stays off; the link with the default route forwards until all is removed."""
    pool = make_pool(1)
    await pool.open(frozenset())
    await filled(pool, 1)
    assert netns.read_sysctl("ipv4/ip_forward") == "0"
    assert netns.read_sysctl(f"ipv4/conf/{lab.wan}/forwarding") == "1"
    netns.write_sysctl(f"ipv4/conf/{lab.wan}/forwarding", "0")
    await wait_for(lambda: netns.read_sysctl(f"ipv4/conf/{lab.wan}/forwarding") == "1")
    await pool.destroy_all()
    assert netns.read_sysctl(f"ipv4/conf/{lab.wan}/forwarding") == "0"


def test_without_a_default_route_everything_but_the_internet_works(instance: str) -> None:
    """A machine that is not connected runs sandboxes all the same."""
    with lab_host(instance, with_default_route=False) as lab:
        asyncio.run(_mends(lab, instance))


async def test_a_prefix_that_somebody_uses_is_refused_with_its_user(lab: Lab, make_pool: MakePool) -> None:
    """Two users of one address would each get the other's packets; the message names link and setting."""
    pool = make_pool(2)
    taken = pool.slot(1).address
    with NetlinkSocket() as host:
        host.request(address_add(2, IPv4Interface(f"{taken}/32")))
    with pytest.raises(Invalid, match=rf"{taken} on {lab.wan}.*network_prefix"):
        await pool.open(frozenset())


async def test_two_instances_live_side_by_side(lab: Lab, make_pool: MakePool, pool: NativeSlotPool) -> None:
    """Another instance with the same prefix comes and goes; ours keeps its slots, rules and way out."""
    other = NativeSlotPool(instance="zz9z", prefix=IPv4Network("10.111.0.0/16"), size=2)
    try:
        await other.open(frozenset())
        await filled(other, 2)
        await answers(lab, other)
    finally:
        await other.destroy_all()
    await filled(pool, 2)
    await wait_for(lambda: netns.read_sysctl(f"ipv4/conf/{lab.wan}/forwarding") == "1")
    slot = await pool.acquire()
    async with Echo(listen_in(lab.internet, "0.0.0.0", 8000)):
        await dial(lab.keep(socket_in(slot.netns)), "1.2.3.4")
