"""Connections into one sandbox: opened, kept for the next request, and all cut at once when it is withdrawn.

They belong to a machine, never to an address: a network slot's address is used again by other sandboxes.
"""

import asyncio
import ssl
from functools import partial
from typing import Protocol

from firebrick.catalog.base import Route, Tombstone
from firebrick.clock import Clock
from firebrick.edge.heads import BadHead, parse_response
from firebrick.edge.link import Link
from firebrick.guestlink.base import AGENT_PORT
from firebrick.model.ids import SandboxId

IDLE_LIMIT_S = 4.0
"""Servers commonly close after 5 s without a request (uvicorn, Node.js); to be earlier avoids the race."""
RECENT_S = 1.0
"""A request that can't be repeated takes only a connection that was used this recently."""
IDLE_PER_PORT_COUNT = 128
FORWARD_HEADERS = b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: firebrick-tcp\r\n"


class Breakable(Protocol):
    """An exchange under way with the sandbox."""

    def break_off(self) -> None: ...


def unverified_tls() -> ssl.SSLContext:
    """For ports that speak TLS inside a sandbox: the way to it is the host's own, whoever the certificate names."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class UpstreamLink(Link):
    """A connection to one port of one machine."""

    def __init__(self, sandbox: "SandboxLinks", port: int) -> None:
        super().__init__()
        self.sandbox = sandbox
        self.port = port
        self.was_used = False
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.sandbox.links.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.sandbox.forget(self)

    async def start_tls(self) -> None:
        """Speak TLS from now on. Raises OSError (ssl.SSLError is one)."""
        assert self.transport is not None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self.transport, self, unverified_tls(), ssl_handshake_timeout=self.sandbox.connect_timeout_s
            )
        except BaseException:
            self.abort()
            raise
        assert secured is not None
        self.secured_by(secured)


class SandboxLinks:
    """What the edge holds of one execution of a sandbox. `connect_timeout_s`: what its servers may take to accept."""

    def __init__(self, route: Route, clock: Clock, *, connect_timeout_s: float) -> None:
        self.route = route
        self.connect_timeout_s = connect_timeout_s
        self.is_withdrawn = False
        self.exchanges: set[Breakable] = set()
        self.links: set[UpstreamLink] = set()
        self._idle: dict[int, list[UpstreamLink]] = {}
        self._on_loopback: set[int] = set()
        """Ports that refused at the machine's address and answered through its guest agent."""
        self._clock = clock

    @property
    def is_unused(self) -> bool:
        return not self.exchanges and not self.links

    def is_at(self, route: Route) -> bool:
        """Whether that route leads to this same machine."""
        mine = self.route
        return (mine.machine_id, mine.address, mine.state) == (route.machine_id, route.address, route.state)

    def take(self, port: int, *, is_repeatable: bool) -> UpstreamLink | None:
        """An idle connection to that port, the last used first; None when there is none to trust."""
        idle = self._idle.get(port)
        limit_s = IDLE_LIMIT_S if is_repeatable else RECENT_S
        while idle:
            link = idle.pop()
            if not link.is_open:
                continue
            if self._clock.monotonic_s() - link.idle_since_s > limit_s:
                idle.append(link)
                return None
            link.detach(b"")
            return link
        return None

    async def connect(self, port: int) -> UpstreamLink:
        """Open a connection: to the machine's address, or through its agent to a server on its loopback.

        Raises: ConnectionRefusedError — nothing listens there; TimeoutError, OSError.
        """
        async with asyncio.timeout(self.connect_timeout_s):
            link = await self._reach(port)
            if port in self.route.https_ports:
                await link.start_tls()
        if self.is_withdrawn:
            link.abort()
        return link

    async def _reach(self, port: int) -> UpstreamLink:
        has_agent = port != AGENT_PORT and bool(self.route.sandbox_id)
        if has_agent and port in self._on_loopback:
            try:
                return await self._through_agent(port)
            except ConnectionRefusedError:
                # What listens there now may be another server, on another address.
                self._on_loopback.discard(port)
        try:
            return await self._dial(port, port)
        except ConnectionRefusedError:
            if not has_agent:
                raise
        link = await self._through_agent(port)
        self._on_loopback.add(port)
        return link

    async def _dial(self, port: int, dialled: int) -> UpstreamLink:
        made = partial(UpstreamLink, self, port)
        _, link = await asyncio.get_running_loop().create_connection(made, self.route.address, dialled)
        return link

    async def _through_agent(self, port: int) -> UpstreamLink:
        """See `GET /firebrick/port/<port>` in api/guest.md. Raises ConnectionRefusedError."""
        link = await self._dial(port, AGENT_PORT)
        try:
            link.write(b"GET /firebrick/port/%d HTTP/1.1\r\n%s\r\n" % (port, FORWARD_HEADERS))
            raw = await link.read_head()
            if raw is None or parse_response(raw).status != 101:
                raise ConnectionRefusedError(f"nothing listens on port {port}, on any address")
        except BadHead as exc:
            link.abort()
            raise ConnectionRefusedError("the guest agent's answer is not HTTP") from exc
        except BaseException:
            link.abort()
            raise
        return link

    def give_back(self, link: UpstreamLink) -> None:
        """Keep a connection whose last answer is complete."""
        idle = self._idle.setdefault(link.port, [])
        if self.is_withdrawn or not link.is_open or link.pending or len(idle) >= IDLE_PER_PORT_COUNT:
            link.abort()
            return
        link.was_used = True
        link.idle_since_s = self._clock.monotonic_s()
        # Bytes nobody asked for would be read as the next request's answer.
        link.attach(lambda _: link.abort())
        idle.append(link)

    def forget(self, link: UpstreamLink) -> None:
        self.links.discard(link)
        idle = self._idle.get(link.port, [])
        if link in idle:
            idle.remove(link)

    def close_idle(self) -> None:
        """Close what has been idle too long."""
        oldest_s = self._clock.monotonic_s() - IDLE_LIMIT_S
        for idle in self._idle.values():
            for link in [link for link in idle if link.idle_since_s < oldest_s]:
                idle.remove(link)
                link.close()

    def cut(self) -> None:
        """The sandbox is gone: break every exchange and connection, now."""
        self.is_withdrawn = True
        for link in list(self.links):
            link.abort()
        for exchange in list(self.exchanges):
            exchange.break_off()


class Sandboxes:
    """The links of every sandbox that has any. Follows the catalog: what is withdrawn there is cut here."""

    def __init__(self, clock: Clock, *, connect_timeout_s: float) -> None:
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._links: dict[SandboxId, SandboxLinks] = {}

    def of(self, route: Route) -> SandboxLinks:
        """The links of that execution; those of an earlier one are cut."""
        links = self._links.get(route.sandbox_id)
        if links is not None and not links.is_at(route):
            self.cut(route.sandbox_id)
            links = None
        if links is None:
            links = SandboxLinks(route, self._clock, connect_timeout_s=self._connect_timeout_s)
            self._links[route.sandbox_id] = links
        return links

    def cut(self, sandbox_id: SandboxId) -> None:
        links = self._links.pop(sandbox_id, None)
        if links is not None:
            links.cut()

    def follow(self, change: Route | Tombstone) -> None:
        """Act on a change of the catalog."""
        links = self._links.get(change.sandbox_id)
        if links is not None and not (isinstance(change, Route) and links.is_at(change)):
            self.cut(change.sandbox_id)

    def sweep(self) -> None:
        """Close idle connections in time, forget sandboxes of which nothing is held."""
        for sandbox_id, links in list(self._links.items()):
            links.close_idle()
            if links.is_unused:
                del self._links[sandbox_id]

    def cut_all(self) -> None:
        for sandbox_id in list(self._links):
            self.cut(sandbox_id)
