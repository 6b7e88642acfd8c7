"""One request, of any version of HTTP, to the end of its answer: decided, let in, woken for, forwarded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from firebrick.catalog.base import RouteState
from firebrick.clock import Clock
from firebrick.edge import answers
from firebrick.edge.answers import Answer
from firebrick.edge.bodies import BadBody
from firebrick.edge.downstream import Downstream
from firebrick.edge.exchange import Ending, Exchange, NoAnswer
from firebrick.edge.heads import RequestHead
from firebrick.edge.router import Place, Router
from firebrick.edge.stats import Stats
from firebrick.edge.upstream import Sandboxes, SandboxLinks, UpstreamLink
from firebrick.edge.wakes import Spawn, Wakes
from firebrick.log import get_log
from firebrick.model.errors import FirebrickError

WAKE_ATTEMPTS = 3
"""A sandbox that is paused again as soon as it runs is not chased for ever."""

log = get_log("edge")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeLimits:
    """What one client may take. Times in seconds."""

    head_timeout_s: float = 30.0
    idle_timeout_s: float = 620.0
    """Above the 600 s of common load balancers, so that they close first and never meet a closed connection."""
    linger_timeout_s: float = 5.0
    connect_timeout_s: float = 5.0
    """What a sandbox's server may take to accept a connection."""
    per_sandbox_count: int = 2_000
    total_count: int = 50_000
    """Client connections; each may need a second descriptor for its upstream."""
    streams_count: int = 1_000
    """HTTP/2 streams of one connection at a time."""


class ClientConnection(Protocol):
    """What the owner of all connections does with each, whatever is spoken on it."""

    deadline_s: float | None
    is_idle: bool

    async def serve(self) -> None: ...

    def expire(self) -> None: ...

    def close(self) -> None: ...

    def reset(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class Shared:
    """What all connections of one edge have in common."""

    router: Router
    sandboxes: Sandboxes
    wakes: Wakes
    stats: Stats
    limits: EdgeLimits
    clock: Clock
    clients: set[ClientConnection]
    spawn: Spawn
    is_closing: bool = False

    def has_room(self) -> bool:
        """For one more client connection. Those that have waited longest for a request make room, a hundredth at a
        time: who holds thousands of connections and says nothing must not shut the others out."""
        if len(self.clients) < self.limits.total_count:
            return True
        waiting = [client for client in self.clients if client.is_idle and client.deadline_s is not None]
        waiting.sort(key=lambda client: client.deadline_s or 0.0)
        for client in waiting[: 1 + self.limits.total_count // 100]:
            self.clients.discard(client)
            client.close()
        return bool(waiting)


class Visit:
    """Runs once. `is_under_way`: the client's going away must cancel the task that runs it."""

    def __init__(self, shared: Shared, client: Downstream, head: RequestHead, *, peer_is_loopback: bool) -> None:
        self.is_under_way = False
        self._shared = shared
        self._client = client
        self._head = head
        self._peer_is_loopback = peer_is_loopback
        self._exchange: Exchange | None = None

    async def run(self) -> Ending | Answer:
        """See the request through; an Answer is still to be given.

        Raises: Truncated — the answer began and can't be completed.
        """
        place = self._shared.router.decide(self._head, peer_is_loopback=self._peer_is_loopback)
        if isinstance(place, Answer):
            return place
        self.is_under_way = True
        try:
            for _ in range(WAKE_ATTEMPTS):
                if place.route.state is RouteState.RUNNING:
                    return await self._enter(place)
                woken = await self._wake(place)
                if isinstance(woken, Answer):
                    return woken
                place = woken
            return answers.state_changes(place.route.sandbox_id)
        finally:
            self.is_under_way = False

    async def _wake(self, place: Place) -> Place | Answer:
        """Only for a request that may enter: who has no traffic token wakes nothing."""
        try:
            await self._shared.wakes.wake(place.route.sandbox_id)
        except FirebrickError as exc:
            if exc.code == "not_found":
                return self._shared.router.gone(place.route.sandbox_id)
            return answers.not_resumed(place.route.sandbox_id, exc)
        return self._shared.router.decide(self._head, peer_is_loopback=self._peer_is_loopback)

    def break_off(self) -> None:
        """The sandbox was withdrawn. An answer that began breaks; one that did not becomes 'not found'."""
        if self._exchange is not None and self._exchange.has_begun:
            self._shared.stats.broken_count += 1
            self._client.reset()

    async def _enter(self, place: Place) -> Ending | Answer:
        links = self._shared.sandboxes.of(place.route)
        limit_count = self._shared.limits.per_sandbox_count
        if len(links.exchanges) >= limit_count:
            return answers.too_many_of_sandbox(place.route.sandbox_id, limit_count)
        with self._counted(links):
            outcome = await self._forward(links, place)
        if not isinstance(outcome, Answer):
            self._shared.stats.forwarded_count += 1
        return outcome

    @contextmanager
    def _counted(self, links: SandboxLinks) -> Iterator[None]:
        """Within, the end of the sandbox ends the exchange."""
        links.exchanges.add(self)
        self._shared.stats.exchange_count += 1
        try:
            yield
        finally:
            self._exchange = None
            links.exchanges.discard(self)
            self._shared.stats.exchange_count -= 1

    async def _forward(self, links: SandboxLinks, place: Place) -> Ending | Answer:
        """Raises Truncated."""
        sandbox_id, port, head = place.route.sandbox_id, place.port, self._head
        raw = head.to_upstream(keep_forwarded=self._peer_is_loopback, host=place.host)
        while True:
            upstream = links.take(port, is_repeatable=head.is_repeatable)
            if upstream is None:
                opened = await self._open(links, place)
                if isinstance(opened, Answer):
                    return opened
                upstream = opened
            self._exchange = Exchange(self._client, upstream, head, self._shared.stats)
            try:
                return await self._exchange.run(raw)
            except BadBody as exc:
                return answers.bad_request(str(exc))
            except NoAnswer as exc:
                if links.is_withdrawn:
                    return self._shared.router.gone(sandbox_id)
                if not (exc.is_silent and upstream.was_used and head.is_repeatable):
                    return self._shared.router.failed(place, answers.no_answer(sandbox_id, port))
                # The server closed an idle connection just when we used it; a fresh one tells the truth.

    async def _open(self, links: SandboxLinks, place: Place) -> UpstreamLink | Answer:
        sandbox_id, port = place.route.sandbox_id, place.port
        try:
            upstream = await links.connect(port)
        except ConnectionRefusedError:
            failure = answers.port_closed(sandbox_id, port)
        except TimeoutError:
            failure = answers.connect_timeout(sandbox_id, port)
        except OSError as exc:
            log.warning("edge.unreachable", sandbox_id=sandbox_id, port=port, errno=exc.errno, reason=str(exc)[:200])
            failure = answers.unreachable(sandbox_id, port)
        else:
            if not links.is_withdrawn:
                return upstream
        if links.is_withdrawn:
            return self._shared.router.gone(sandbox_id)
        return self._shared.router.failed(place, failure)
