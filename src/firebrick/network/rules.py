"""The two rulesets, as text: the host's table, one per instance, and the table in each slot namespace.

The guest's own packets are judged twice: first in its slot namespace, which it cannot enter, then on the host.

    guest ─▶ slot namespace: is it the guest's address? is the way open? translate ─▶
          ─▶ host: is it this slot's address? private, ours or another slot's? drop : translate ─▶ internet

Only the host opens connections to a guest (edge, node agent). Refusals answer at once instead of by silence, so
that a program in a sandbox fails in a millisecond and not in a minute.
No rule is added when a machine starts: the host's sets name every slot of the pool from the beginning.

Where names are allowed, what is denied by address and goes to port 80 or 443 is not refused but handed to the name
filter, which listens in the slot namespace for this slot alone. There the rules above stay as they are: without the
filter there is nobody to talk to, and nothing of a guest's passes.
"""

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Address

from firebrick.model.egress import Egress
from firebrick.network.base import INSIDE_ADDRESS, INSIDE_GATEWAY
from firebrick.network.layout import Layout
from firebrick.network.name_filter.decision import NAMED_PORTS

CLOSED = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3",
    # Azure's metadata and DHCP service has a public address.
    "168.63.129.16/32",
)  # fmt: skip
"""What no guest may reach: private and shared ranges, loopback, link-local, multicast, metadata services.

192.0.0.0/24 holds Oracle's metadata address (192.0.0.192), 100.64.0.0/10 Alibaba's (100.100.100.200).
"""

UPLINK, INNER = "up", "inner"
OUTWARD_MTU_BYTES = 1500
"""Of what a guest sends beyond the host, at most. Its route says so; gVisor heeds no route's, so that the host's rules
also clamp the segment size of connections that leave."""
SLOT_TABLE = "firebrick"
OPEN_CONNECTIONS_MAX_COUNT = 8192
"""Of one guest, outwards: the host's connection table is shared, and one guest must not fill it."""
FILTER_PORT = 3128
"""Where the name filter listens, at the guest's gateway; open only to connections that the rules sent there."""


REFUSE = """
    chain refuse {
        # A reset, because the kernel sends only about one ICMP message a second to one destination.
        meta l4proto tcp counter reject with tcp reset
        counter reject with icmp type admin-prohibited
    }
"""


def host_table(
    layout: Layout, indices: Iterable[int], guarded_links: Iterable[str], resolvers: Iterable[IPv4Address] = ()
) -> str:
    """Replace the instance's table in one transaction; there is no moment without rules.

    Runs before the filters of other programs (priority -10). What they drop stays dropped: with nftables a
    packet has to pass every chain, so a firewall whose forward policy is drop needs an exception of its own.
    """
    name = f"inet {layout.table}"
    slots = list(indices)
    links = _elements(f'"{layout.host_link(index)}"' for index in slots)
    sources = _elements(f'"{layout.host_link(index)}" . {layout.address(index)}' for index in slots)
    addresses = _elements(str(layout.address(index)) for index in slots)
    closed = _elements(dict.fromkeys((*CLOSED, str(layout.prefix))))
    guarded = _elements(f'"{link}"' for link in guarded_links)
    servers = _elements(str(address) for address in dict.fromkeys(resolvers))
    return f"""
table {name} {{}}
delete table {name}
table {name} {{
    set slot_links {{ type ifname; {links} }}
    set slot_sources {{ type ifname . ipv4_addr; {sources} }}
    set slot_addresses {{ type ipv4_addr; {addresses} }}
    set closed {{ type ipv4_addr; flags interval; auto-merge; {closed} }}
    set guarded_links {{ type ifname; {guarded} }}
    set resolvers {{ type ipv4_addr; {servers} }}
{REFUSE}
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname @slot_links jump slot_to_host
    }}
    chain slot_to_host {{
        iifname . ip saddr != @slot_sources counter drop
        meta nfproto != ipv4 counter drop
        ct state established,related accept
        jump refuse
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        iifname @slot_links jump from_slot
        oifname @slot_links jump to_slot
        iifname @guarded_links ct state new ct status != dnat counter drop
    }}
    chain from_slot {{
        meta nfproto != ipv4 counter drop
        iifname . ip saddr != @slot_sources counter drop
        ct state invalid counter drop
        oifname @slot_links jump refuse
        ip daddr @closed jump refuse
        # A slot's links carry larger packets than the way out: neither end may be told of those.
        tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        accept
    }}
    chain to_slot {{
        tcp flags & (syn | rst) == syn tcp option maxseg size set {OUTWARD_MTU_BYTES - 40}
        ct state established,related accept
        counter drop
    }}
    chain output {{
        type filter hook output priority -10; policy accept;
        meta skuid {layout.filter_uid} jump from_filter
    }}
    chain from_filter {{
        # It dials for guests, so it may reach what they may; and name servers, wherever these are.
        meta nfproto != ipv4 jump refuse
        ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
        fib daddr type != unicast jump refuse
        ip daddr @closed jump refuse
        tcp dport {{ {", ".join(map(str, NAMED_PORTS))} }} accept
        jump refuse
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr @slot_addresses oifname != @slot_links masquerade
    }}
}}
"""


def guard_links(layout: Layout, links: Iterable[str]) -> str:
    """Say anew on which links forwarding is on because of us."""
    name = f"inet {layout.table} guarded_links"
    elements = ", ".join(f'"{link}"' for link in links)
    return f"flush set {name}\n" + (f"add element {name} {{ {elements} }}\n" if elements else "")


def delete_host_table(layout: Layout) -> str:
    return f"table inet {layout.table} {{}}\ndelete table inet {layout.table}\n"


def slot_table(layout: Layout, index: int) -> str:
    """The rules of one slot namespace; loaded before it has a link, so there is no open moment.

    A flow that the guest opened passes `outward` and `answers`, packet by packet: what comes into `denied` cuts flows
    that are already there. Flows that the host opened pass neither.
    """
    address = layout.address(index)
    closed = _elements(dict.fromkeys((*CLOSED, str(layout.prefix))))
    return f"""
table inet {SLOT_TABLE} {{
    set closed {{ type ipv4_addr; flags interval; auto-merge; {closed} }}
    set allowed {{ type ipv4_addr; flags interval; auto-merge; }}
    set denied {{ type ipv4_addr; flags interval; auto-merge; }}
    set name_servers {{ type ipv4_addr; }}
    set named_ports {{ type inet_service; }}
{REFUSE}
    chain spoofed {{
        type filter hook prerouting priority raw; policy accept;
        meta nfproto ipv6 counter drop
        iifname "{INNER}" ip saddr != {INSIDE_ADDRESS} counter drop
    }}
    chain arriving {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname "{UPLINK}" ip daddr {address} dnat ip to {INSIDE_ADDRESS}
        iifname "{INNER}" tcp dport @named_ports jump to_filter
    }}
    chain to_filter {{
        ip daddr @closed return
        ip daddr @allowed return
        ip daddr @denied meta l4proto tcp redirect to :{FILTER_PORT}
    }}
    chain leaving {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{UPLINK}" snat ip to {address}
        oifname "{INNER}" snat ip to {INSIDE_GATEWAY}
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state invalid counter drop
        # A segment of a connection that we did not see begin is an earlier guest's: it founds none here.
        ct state new tcp flags & (fin | syn | rst | ack) != syn counter reject with tcp reset
        iifname "{INNER}" oifname "{UPLINK}" ct direction reply accept
        iifname "{UPLINK}" oifname "{INNER}" ct direction original accept
        iifname "{INNER}" jump outward
        iifname "{UPLINK}" jump answers
    }}
    chain answers {{
        ct state new,untracked drop
        ip saddr @allowed accept
        ip saddr @name_servers accept
        ip saddr @denied counter drop
        accept
    }}
    chain outward {{
        ip daddr @closed jump refuse
        ip daddr @allowed goto counted
        ip daddr @name_servers meta l4proto {{ tcp, udp }} th dport 53 goto counted
        ip daddr @denied jump refuse
        goto counted
    }}
    chain counted {{
        ct state established,related accept
        ct count over {OPEN_CONNECTIONS_MAX_COUNT} jump refuse
        accept
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        # What no connection claims may come in from the host: the kernel then answers with a reset.
        iifname "{UPLINK}" accept
        iifname "{INNER}" tcp dport {FILTER_PORT} ct status dnat goto counted
        jump refuse
    }}
}}
"""


def egress_rules(egress: Egress) -> str:
    """Fill a slot's sets anew, in one transaction. Lasts as long as the slot namespace."""
    sets: dict[str, Iterable[object]] = {
        "allowed": egress.allow,
        "denied": egress.deny,
        "name_servers": egress.dns,
        "named_ports": NAMED_PORTS if egress.names else (),
    }
    # A slot in use that an earlier version made has no such set; names cannot be allowed there, the rest can.
    lines = [] if egress.names else [f"add set inet {SLOT_TABLE} named_ports {{ type inet_service; }}"]
    for name, values in sets.items():
        lines.append(f"flush set inet {SLOT_TABLE} {name}")
        if elements := ", ".join(str(value) for value in dict.fromkeys(values)):
            lines.append(f"add element inet {SLOT_TABLE} {name} {{ {elements} }}")
    return "\n".join((*lines, ""))


def fingerprint(layout: Layout, index: int) -> str:
    """Changes with anything that a slot is made of; an older slot is then made anew."""
    material = f"v2 {layout.slot(index)} {layout.host_address(index)} {slot_table(layout, index)}"
    return hashlib.sha256(material.encode()).hexdigest()[:16]


def _elements(values: Iterable[str]) -> str:
    text = ", ".join(values)
    return f"elements = {{ {text} }}" if text else ""
