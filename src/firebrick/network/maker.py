"""Make and unmake slots: the blocking half of the native pool. It decides nothing and remembers nothing.

A slot is never cleaned, it is removed and made anew: what an earlier guest left in a namespace (connections,
neighbours, queued packets, sockets) goes with the namespace, and there is one way to a ready slot.
The order is the safety: rules before links, the host's address last, the ready mark at the very end. Each step
may be the last one that our process lives to see; `unmake` takes away whatever there is.
"""

import errno
import os
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from firebrick.linux import netns
from firebrick.linux.connections import abort_tcp_to, forget_connections
from firebrick.linux.netlink import (
    Message,
    NetlinkSocket,
    VethEnd,
    address_add,
    default_route_add,
    link_route_between,
    link_set_group,
    link_up,
    links_delete_group,
    neighbour_add,
    veth_add,
)
from firebrick.linux.nft import Nft, NftFailed
from firebrick.model.egress import Egress
from firebrick.model.errors import Invalid
from firebrick.network.base import GUEST_INTERFACE, INSIDE_ADDRESS, INSIDE_GATEWAY, INSIDE_PREFIX_LENGTH, NetworkFailed
from firebrick.network.layout import Layout
from firebrick.network.marks import Marks
from firebrick.network.rules import (
    FILTER_PORT,
    INNER,
    OUTWARD_MTU_BYTES,
    UPLINK,
    delete_host_table,
    egress_rules,
    fingerprint,
    host_table,
    slot_table,
)

GUEST_MAC, GATEWAY_MAC = "02:fb:a9:fe:00:15", "02:fb:a9:fe:00:16"
"""The same in every slot, so that a guest restored in another one keeps a true neighbour table."""

LO, SLOT_UPLINK, SLOT_INNER, GUEST_LINK = 1, 2, 3, 2
"""Interface indices inside a slot; ours to choose, so nothing has to be looked up."""

LINK_MTU_BYTES = 65_520
"""Between host and guest nothing is a wire. Large packets cost gVisor and the edge a third to a half less a byte."""

LISTEN_BACKLOG = 256

GUEST_SETTINGS = (
    ("ipv6/conf/all/disable_ipv6", "1"),
    # The guest has no capability over its namespace: ping and low ports must work without one.
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv4/ip_unprivileged_port_start", "0"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What an earlier process left. `whole` slots are ready as they are; `present` ones have any part at all."""

    whole: frozenset[int]
    present: frozenset[int]


class SlotMaker:
    """Every method blocks and may change its thread's namespace: call it through `linux.netns.in_own_thread`.

    `at_step_for_test_purposes_only` is called with the name of each step before it is taken, and may raise.
    """

    def __init__(
        self,
        layout: Layout,
        marks: Marks,
        *,
        name_servers: Collection[IPv4Address] = (),
        at_step_for_test_purposes_only: Callable[[str], None] | None = None,
    ) -> None:
        self._layout = layout
        self._marks = marks
        self._name_servers = name_servers
        self._with_ipv6 = netns.has_ipv6()
        self._step = at_step_for_test_purposes_only or (lambda name: None)

    def prepare_host(self, indices: Collection[int], guarded_links: Iterable[str]) -> None:
        """Load the host's rules for these slots, before any of them has a link. Idempotent.

        Raises:
            Invalid: the prefix is in use by somebody else.
            NetworkFailed: nftables or /run/netns do not work here.
        """
        self._check_prefix_is_free(indices)
        try:
            self._marks.prepare()
            netns.prepare_names()
            with Nft() as nft:
                nft.run(host_table(self._layout, indices, guarded_links, self._name_servers))
        except (OSError, NftFailed) as exc:
            raise NetworkFailed("The host's network rules could not be loaded.", detail=str(exc)) from exc

    def _check_prefix_is_free(self, indices: Collection[int]) -> None:
        ours = {self._layout.host_address(index) for index in indices}
        ours |= {self._layout.address(index) for index in indices}
        with NetlinkSocket() as host:
            names = {link.index: link.name for link in host.links()}
            foreign = [(names.get(link, ""), address) for link, address in host.addresses()]
            foreign += [
                (names.get(route.link, ""), address)
                for route in host.routes()
                if route.destination.prefixlen >= max(self._layout.prefix.prefixlen, 16)
                and route.destination.overlaps(self._layout.prefix)
                for address in route.destination
            ]
        for name, address in foreign:
            if address in ours and self._layout.index_of_link(name) is None:
                raise Invalid(
                    f"The addresses of sandboxes ({self._layout.prefix}) are in use on this machine: {address} on "
                    f"{name or 'a route'}. Give 'network_prefix' another network."
                )

    def survey(self) -> Survey:
        """Look at what there is of this instance; changes nothing."""
        found = {self._layout.index_of_netns(name) for name in netns.names()}
        with NetlinkSocket() as host:
            linked = {self._layout.index_of_link(link.name) for link in host.links() if link.kind == "veth"}
        marks = self._marks.ready()
        present = frozenset(index for index in found | linked | set(marks) if index is not None)
        whole = {index for index in present & linked if marks.get(index, "") == self._proof(index)}
        return Survey(whole=frozenset(whole), present=present)

    def _proof(self, index: int) -> str:
        inodes = [netns.inode(name(index)) for name in (self._layout.slot_netns, self._layout.guest_netns)]
        return f"{fingerprint(self._layout, index)} {inodes[0]} {inodes[1]}" if all(inodes) else "broken"

    def make(self, index: int) -> None:
        """Make one slot, of which nothing is there, and mark it ready.

        Raises: NetworkFailed with the step that failed; then `unmake` must follow.
        Effects: two namespaces, three links, the ready mark; `unmake` removes them. 3-5 ms.
        """
        step = "start"

        def at(name: str) -> None:
            nonlocal step
            step = name
            self._step(name)

        try:
            self._make(index, at)
        except (OSError, NftFailed) as exc:
            raise NetworkFailed(f"Network slot {index} could not be made ({step}).", detail=str(exc)) from exc

    def _make(self, index: int, at: Callable[[str], None]) -> None:
        host_fd = netns.open_own()
        guest_fd = -1
        try:
            with NetlinkSocket() as host:
                at("slot namespace")
                netns.unshare()
                netns.name_own(self._layout.slot_netns(index))
                with NetlinkSocket() as slot:
                    at("slot rules")
                    with Nft() as nft:
                        nft.run(slot_table(self._layout, index))
                    at("guest namespace")
                    netns.unshare()
                    netns.name_own(self._layout.guest_netns(index))
                    guest_fd = netns.open_own()
                    at("guest settings")
                    self._write_guest_settings()
                    with NetlinkSocket() as guest:
                        at("links")
                        slot.request(*self._links(index, host_fd, guest_fd))
                        at("guest addresses")
                        guest.request(*_guest_addresses())
                        at("slot addresses")
                        slot.request(*self._slot_addresses(index))
                netns.enter(host_fd)
                at("host link")
                self._connect_host(host, index)
            at("ready mark")
            self._marks.put_ready(index, self._proof(index))
        finally:
            os.close(host_fd)
            if guest_fd >= 0:
                os.close(guest_fd)

    def _links(self, index: int, host_fd: int, guest_fd: int) -> tuple[Message, ...]:
        mtu = LINK_MTU_BYTES
        host_end = VethEnd(name=self._layout.host_link(index), netns=host_fd, mtu_bytes=mtu)
        guest_end = VethEnd(name=GUEST_INTERFACE, index=GUEST_LINK, mac=GUEST_MAC, netns=guest_fd, mtu_bytes=mtu)
        return (
            veth_add(VethEnd(name=UPLINK, index=SLOT_UPLINK, mtu_bytes=mtu), host_end),
            veth_add(VethEnd(name=INNER, index=SLOT_INNER, mac=GATEWAY_MAC, mtu_bytes=mtu), guest_end),
        )

    def _slot_addresses(self, index: int) -> tuple[Message, ...]:
        return (
            link_up(LO),
            link_route_between(SLOT_INNER, with_ipv6=self._with_ipv6),
            link_route_between(SLOT_UPLINK, with_ipv6=self._with_ipv6),
            address_add(SLOT_INNER, _inside(INSIDE_GATEWAY)),
            link_up(SLOT_INNER),
            # Permanent, so that no ARP answer of a guest with raw sockets can move it.
            neighbour_add(SLOT_INNER, IPv4Address(INSIDE_ADDRESS), GUEST_MAC),
            address_add(SLOT_UPLINK, IPv4Interface((self._layout.address(index), 31))),
            link_up(SLOT_UPLINK),
            default_route_add(SLOT_UPLINK, self._layout.host_address(index)),
        )

    def _connect_host(self, host: NetlinkSocket, index: int) -> None:
        link = socket.if_nametoindex(self._layout.host_link(index))
        host.request(
            link_route_between(link, with_ipv6=self._with_ipv6),
            address_add(link, IPv4Interface((self._layout.host_address(index), 31))),
            link_up(link),
        )

    def _write_guest_settings(self) -> None:
        for name, value in GUEST_SETTINGS:
            # A kernel without IPv6 has nothing to turn off.
            if self._with_ipv6 or not name.startswith("ipv6/"):
                netns.write_sysctl(name, value)

    def unmake(self, indices: Collection[int]) -> None:
        """Remove all there is of these slots, in one go: as dear as one (30 ms, which the kernel waits).

        Cuts what is still connected: host sockets to the guest see a reset, translations are forgotten, and what
        still runs in a slot's namespaces is killed. Idempotent. Raises NetworkFailed.
        """
        step = "start"
        try:
            for index in indices:
                self._marks.take_ready(index)
            self._step(step := "unmark")
            self._delete_links(indices)
            self._step(step := "unlinked")
            addresses = [self._layout.address(index) for index in indices]
            for address in addresses:
                abort_tcp_to(address)
            forget_connections(addresses)
            self._step(step := "disconnected")
            names = [name(i) for i in indices for name in (self._layout.guest_netns, self._layout.slot_netns)]
            for process in netns.processes_in({netns.inode(name) for name in names}):
                process.kill()
            for name in names:
                self._step(step := f"removing {name}")
                netns.remove(name)
        except OSError as exc:
            some = ", ".join(map(str, sorted(indices)))
            raise NetworkFailed(f"Network slots {some} could not be removed (after: {step}).", detail=str(exc)) from exc

    def _delete_links(self, indices: Collection[int]) -> None:
        wanted = {self._layout.host_link(index) for index in indices}
        group = self._layout.link_group
        with NetlinkSocket() as host:
            doomed = [link.index for link in host.links() if link.name in wanted and link.kind == "veth"]
            if not doomed:
                return
            for link in doomed:
                # A link may end by itself meanwhile: its other end's namespace may just be going.
                _unless_gone(lambda link=link: host.request(link_set_group(link, group)))  # type: ignore[misc]
            _unless_gone(lambda: host.request(links_delete_group(group)))

    def restrict(self, index: int, egress: Egress) -> None:
        """Raises NetworkFailed; then the rules are as they were."""

        def load() -> None:
            with Nft() as nft:
                nft.run(egress_rules(egress))

        try:
            netns.call_inside(netns.NETNS_DIR / self._layout.slot_netns(index), load)
        except (OSError, NftFailed) as exc:
            raise NetworkFailed(f"The network rules of slot {index} could not be set.", detail=str(exc)) from exc

    def listen(self, index: int) -> socket.socket:
        """The listening socket of the name filter, in the slot's namespace: which slot a connection comes from is
        told by who accepts it. Only what the slot's rules send there gets to it. Raises OSError."""
        return netns.call_inside(netns.NETNS_DIR / self._layout.slot_netns(index), _listen)

    def remove_host_rules(self) -> None:
        try:
            with Nft() as nft:
                nft.run(delete_host_table(self._layout))
        except NftFailed as exc:
            raise NetworkFailed("The host's network rules could not be removed.", detail=str(exc)) from exc


def _listen() -> socket.socket:
    made = socket.create_server((INSIDE_GATEWAY, FILTER_PORT), backlog=LISTEN_BACKLOG)
    made.setblocking(False)
    return made


def _inside(address: str) -> IPv4Interface:
    return IPv4Interface(f"{address}/{INSIDE_PREFIX_LENGTH}")


def _guest_addresses() -> tuple[Message, ...]:
    gateway = IPv4Address(INSIDE_GATEWAY)
    return (
        link_up(LO),
        address_add(GUEST_LINK, _inside(INSIDE_ADDRESS)),
        link_up(GUEST_LINK),
        neighbour_add(GUEST_LINK, gateway, GATEWAY_MAC),
        default_route_add(GUEST_LINK, gateway, mtu_bytes=OUTWARD_MTU_BYTES),
    )


def _unless_gone(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as exc:
        if exc.errno != errno.ENODEV:
            raise
