"""What the network of this machine can do, found out by doing it: facts for the doctor, no judgement."""

from dataclasses import dataclass

from firebrick.linux import netns
from firebrick.linux.netlink import NetlinkSocket, VethEnd, link_up, veth_add
from firebrick.linux.netns import in_own_thread
from firebrick.linux.nft import Nft, NftFailed
from firebrick.network.forwarding import links_with_way_out

TRIAL_RULES = """
table inet firebrick_trial {
    set places { type ifname . ipv4_addr; elements = { "up" . 10.0.0.1 } }
    chain forward {
        type filter hook forward priority filter; policy drop;
        iifname . ip saddr @places ct direction original ct count over 4 reject with icmp type admin-prohibited
        tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    }
    chain arriving {
        type nat hook prerouting priority dstnat;
        ip daddr 10.0.0.1 dnat ip to 10.0.0.2
        iifname "inner" tcp dport 80 redirect to :3128
    }
    chain output { type filter hook output priority -10; meta skuid 1 fib daddr type != unicast reject with tcp reset; }
    chain leaving { type nat hook postrouting priority srcnat; masquerade; }
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """An error is empty when the thing works, else the kernel's or the library's words."""

    netns_error: str
    """A new network namespace can be made."""
    veth_error: str
    """A veth pair can be made in it."""
    nft_error: str
    """libnftables is there, and the kernel takes every kind of rule that slots need."""
    ip_forward: bool
    """The machine forwards on all links; when not, we turn it on for the links that lead out."""
    default_route_links: tuple[str, ...]
    """Where the internet is; empty: sandboxes work, but have no internet."""
    forward_drops: tuple[str, ...]
    """Chains of others ("ip filter FORWARD") that drop forwarded packets by policy, as Docker's and ufw's do.

    No rule of ours can overrule one: sandboxes reach the internet only when it makes an exception for our links.
    """
    has_docker_user_chain: bool
    """Docker's place for such an exception exists."""


async def probe_network() -> NetworkFacts:
    """Look and try; leaves nothing behind. Never raises for what does not work: that is an answer."""
    netns_error, veth_error, trial_error = await in_own_thread(_try_in_new_namespace)
    return await in_own_thread(lambda: _look_at_host(netns_error, veth_error, trial_error))


def _try_in_new_namespace() -> tuple[str, str, str]:
    try:
        netns.unshare()
    except OSError as exc:
        return str(exc), "no namespace to try it in", "no namespace to try it in"
    veth_error = nft_error = ""
    try:
        with NetlinkSocket() as trial:
            trial.request(veth_add(VethEnd(name="up", index=2), VethEnd(name="inner", index=3)), link_up(2), link_up(3))
    except OSError as exc:
        veth_error = str(exc)
    try:
        with Nft() as nft:
            nft.run(TRIAL_RULES)
    except NftFailed as exc:
        nft_error = str(exc)
    return "", veth_error, nft_error


def _look_at_host(netns_error: str, veth_error: str, trial_error: str) -> NetworkFacts:
    drops: tuple[str, ...] = ()
    docker_user = False
    nft_error = trial_error
    try:
        with Nft() as nft:
            chains = nft.list_chains()
    except NftFailed as exc:
        nft_error = nft_error or str(exc)
    else:
        drops = tuple(
            f"{chain['family']} {chain['table']} {chain['name']}"
            for chain in chains
            if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain["family"] in ("ip", "inet")
        )
        docker_user = any(chain["name"] == "DOCKER-USER" for chain in chains)
    return NetworkFacts(
        netns_error=netns_error,
        veth_error=veth_error,
        nft_error=nft_error,
        ip_forward=netns.read_sysctl("ipv4/ip_forward") == "1",
        default_route_links=tuple(sorted(links_with_way_out())),
        forward_drops=drops,
        has_docker_user_chain=docker_user,
    )
