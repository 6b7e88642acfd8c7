"""Forwarding on the links that lead out, on for as long as an instance lives, and only where it was off.

The machine's `ip_forward` stays as it is: forwarding is turned on for single links, those with a default route.
Links come and go (a laptop changes from cable to radio, a VPN starts), so the kernel is asked to say when routes
or settings change. A link that forwards only because of us is guarded: what comes in there and belongs to no
connection may not be forwarded, so that the machine does not become a router by having run a sandbox.
Once somebody turns `ip_forward` on for the whole machine, the guard goes: routing is then wanted.
"""

import asyncio
from contextlib import ExitStack
from typing import Any

from firebrick.linux.netlink import GROUP_IPV4_NETCONF, GROUP_IPV4_ROUTE, NetlinkSocket
from firebrick.linux.netns import in_own_thread, read_sysctl, write_sysctl
from firebrick.linux.nft import Nft, NftFailed
from firebrick.network.base import NetworkFailed
from firebrick.network.layout import Layout
from firebrick.network.marks import Marks
from firebrick.network.rules import guard_links

DEBOUNCE_S = 0.25
"""Slots have routes too: a filling pool says a hundred times a second that routes changed."""


class Forwarding:
    def __init__(self, layout: Layout, marks: Marks, log: Any) -> None:
        self._layout = layout
        self._marks = marks
        self._log = log

    def adjust(self) -> frozenset[str]:
        """Turn forwarding on where a way out begins; answers the links that we did it on. Idempotent; blocks."""
        if read_sysctl("ipv4/ip_forward") == "1":
            self._marks.put_forwarding(frozenset())
            return frozenset()
        ways_out = links_with_way_out()
        ours = self._marks.forwarding() | {link for link in ways_out if not _forwards(link)}
        # NOTE: noted before it is done, so that a crash in between leaves nothing that nobody turns back.
        self._marks.put_forwarding(ours)
        for link in ours & ways_out:
            _set(link, "1")
        return ours

    def restore(self) -> None:
        """Turn it off again where we turned it on. Idempotent; blocks."""
        if read_sysctl("ipv4/ip_forward") == "0":
            for link in self._marks.forwarding():
                _set(link, "0")
        self._marks.put_forwarding(frozenset())

    async def watch(self) -> None:
        """Adjust whenever routes or forwarding settings change; ends when it is cancelled."""
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            news = stack.enter_context(NetlinkSocket(groups=GROUP_IPV4_ROUTE | GROUP_IPV4_NETCONF))

            def note() -> None:
                news.drain_nowait()
                changed.set()

            loop.add_reader(news.fileno(), note)
            stack.callback(loop.remove_reader, news.fileno())
            while True:
                await changed.wait()
                changed.clear()
                try:
                    await in_own_thread(self._adjust_and_guard)
                except (OSError, NetworkFailed) as exc:
                    self._log.warning("network.forwarding_failed", error=str(exc))
                await asyncio.sleep(DEBOUNCE_S)

    def _adjust_and_guard(self) -> None:
        before = self._marks.forwarding()
        after = self.adjust()
        if after == before:
            return
        try:
            with Nft() as nft:
                nft.run(guard_links(self._layout, after))
        except NftFailed as exc:
            raise NetworkFailed("The guard of forwarding links could not be set.", detail=str(exc)) from exc
        self._log.info("network.forwarding", links=sorted(after))


def links_with_way_out() -> frozenset[str]:
    """Links of this namespace with a default route, in any table; halves of one (as VPNs set) count."""
    with NetlinkSocket() as host:
        names = {link.index: link.name for link in host.links()}
        return frozenset(
            names[route.link]
            for route in host.routes()
            if route.destination.prefixlen <= 1 and route.link in names and names[route.link] != "lo"
        )


def _forwards(link: str) -> bool:
    try:
        return read_sysctl(f"ipv4/conf/{link}/forwarding") == "1"
    except FileNotFoundError:
        return False


def _set(link: str, value: str) -> None:
    try:
        write_sysctl(f"ipv4/conf/{link}/forwarding", value)
    except FileNotFoundError:
        # The link is gone, and its setting with it.
        pass
