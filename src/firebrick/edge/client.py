"""A client's connection: reads its requests one after the other and sees each to its end.

idle ─▶ head ─▶ exchange ─▶ idle …         each state has its deadline, kept by the owner's sweep:
          └─▶ own answer ─▶ idle | linger  idle 620 s, head 30 s, linger 5 s; an exchange has none
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from firebrick.clock import Clock
from firebrick.edge import answers
from firebrick.edge.answers import Answer
from firebrick.edge.bodies import BadBody, BodyReader
from firebrick.edge.exchange import Ending, Exchange, NoAnswer, Truncated
from firebrick.edge.heads import BadHead, RequestHead, parse_request
from firebrick.edge.link import HEAD_LIMIT_BYTES, HeadTooLarge, Link
from firebrick.edge.router import Place, Router
from firebrick.edge.stats import Stats
from firebrick.edge.target import is_loopback_address
from firebrick.edge.upstream import Sandboxes, SandboxLinks, UpstreamLink
from firebrick.log import get_log

log = get_log("edge")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeLimits:
    """What one client may take. Times in seconds."""

    head_timeout_s: float = 30.0
    idle_timeout_s: float = 620.0
    """Above the 600 s of common load balancers, so that they close first and never meet a closed connection."""
    linger_timeout_s: float = 5.0
    per_sandbox_count: int = 2_000
    total_count: int = 50_000
    """Client connections; each may need a second descriptor for its upstream."""


@dataclass(slots=True, kw_only=True)
class Shared:
    """What all connections of one edge have in common."""

    router: Router
    sandboxes: Sandboxes
    stats: Stats
    limits: EdgeLimits
    clock: Clock
    clients: "set[ClientLink]"
    spawn: "Callable[[ClientLink], asyncio.Task[None]]"
    is_closing: bool = False


class ClientLink(Link):
    """One accepted connection; its task is `serve`."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.deadline_s: float | None = None
        self.is_idle = False
        self._shared = shared
        self._task: asyncio.Task[None] | None = None
        self._exchange: Exchange | None = None
        self._is_forwarding = False
        self._is_reading_head = False
        self._peer_is_loopback = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        shared = self._shared
        if shared.is_closing or len(shared.clients) >= shared.limits.total_count:
            shared.stats.answered[503] += 1
            self.write(answers.too_many().render(for_browser=False, with_body=True, keeps_alive=False))
            self.close()
            return
        peer = transport.get_extra_info("peername")
        self._peer_is_loopback = bool(peer) and is_loopback_address(peer[0])
        shared.clients.add(self)
        shared.stats.connection_count = len(shared.clients)
        self._task = shared.spawn(self)

    def eof_received(self) -> bool | None:
        super().eof_received()
        self._stop_forwarding()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_forwarding()
        self._shared.clients.discard(self)
        self._shared.stats.connection_count = len(self._shared.clients)

    def _stop_forwarding(self) -> None:
        """The client went away: so does its upstream connection, at once."""
        if self._is_forwarding and self._task is not None:
            self._task.cancel()

    def break_off(self) -> None:
        """The sandbox was withdrawn. An answer that began breaks; one that did not becomes 'not found'."""
        if self._exchange is not None and self._exchange.has_begun:
            self._shared.stats.broken_count += 1
            self.reset()

    def expire(self) -> None:
        """The deadline of the present state has passed."""
        if self._is_reading_head:
            self._shared.stats.answered[408] += 1
            self.write(answers.head_timeout().render(for_browser=False, with_body=True, keeps_alive=False))
            self.close()
        else:
            self.abort()

    async def serve(self) -> None:
        try:
            while await self._serve_one():
                pass
            self.close()
        except Exception:  # the root of this task: a defect costs this connection, not the edge
            log.exception("edge.connection_failed")
            self.abort()

    async def _serve_one(self) -> bool:
        """Read and answer one request; whether another may follow."""
        try:
            head = await self._read_request()
        except HeadTooLarge:
            return await self._refuse(answers.head_too_large(HEAD_LIMIT_BYTES))
        except BadHead as exc:
            return await self._refuse(answers.bad_request(exc.message, exc.status))
        if head is None:
            return False
        body = head.body()
        place = self._shared.router.decide(head, peer_is_loopback=self._peer_is_loopback)
        if isinstance(place, Answer):
            return await self._reply(place, head, body)
        links = self._shared.sandboxes.of(place.route)
        limit_count = self._shared.limits.per_sandbox_count
        if len(links.exchanges) >= limit_count:
            return await self._reply(answers.too_many_of_sandbox(place.route.sandbox_id, limit_count), head, body)
        with self._forwarding(links):
            try:
                outcome = await self._forward(links, place, head, body)
            except Truncated:
                self._shared.stats.broken_count += 1
                self.reset()
                return False
        if isinstance(outcome, Answer):
            return await self._reply(outcome, head, body)
        self._shared.stats.forwarded_count += 1
        if outcome is Ending.LINGER:
            await self._linger()
        return outcome is Ending.KEEP

    async def _read_request(self) -> RequestHead | None:
        now_s = self._shared.clock.monotonic_s
        self.deadline_s = now_s() + self._shared.limits.idle_timeout_s
        try:
            while not self.pending:
                if not self.is_open or self._shared.is_closing:
                    return None
                self.is_idle = True
                await self.more()
            self.is_idle = False
            self._is_reading_head = True
            self.deadline_s = now_s() + self._shared.limits.head_timeout_s
            raw = await self.read_head()
            return None if raw is None else parse_request(raw)
        finally:
            self._is_reading_head = False
            self.deadline_s = None

    @contextmanager
    def _forwarding(self, links: SandboxLinks) -> Iterator[None]:
        """Within, the end of the client or of the sandbox ends the exchange."""
        self._is_forwarding = True
        links.exchanges.add(self)
        self._shared.stats.exchange_count += 1
        try:
            yield
        finally:
            self._is_forwarding = False
            self._exchange = None
            links.exchanges.discard(self)
            self._shared.stats.exchange_count -= 1

    async def _forward(self, links: SandboxLinks, place: Place, head: RequestHead, body: BodyReader) -> Ending | Answer:
        """Raises Truncated."""
        sandbox_id, port = place.route.sandbox_id, place.port
        raw = head.to_upstream(keep_forwarded=self._peer_is_loopback)
        while True:
            upstream = links.take(port, is_repeatable=head.is_repeatable)
            if upstream is None:
                opened = await self._open(links, place)
                if isinstance(opened, Answer):
                    return opened
                upstream = opened
            self._exchange = Exchange(self, upstream, head, body, self._shared.stats)
            try:
                return await self._exchange.run(raw, may_keep_alive=not self._shared.is_closing)
            except BadBody as exc:
                return answers.bad_request(str(exc))
            except NoAnswer as exc:
                if links.is_withdrawn:
                    return self._shared.router.gone(sandbox_id)
                if not (exc.is_silent and upstream.was_used and head.is_repeatable):
                    return answers.no_answer(sandbox_id, port)
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
            log.warning("edge.unreachable", sandbox_id=sandbox_id, port=port, errno=exc.errno)
            failure = answers.unreachable(sandbox_id, port)
        else:
            if not links.is_withdrawn:
                return upstream
        return self._shared.router.gone(sandbox_id) if links.is_withdrawn else failure

    async def _refuse(self, answer: Answer) -> bool:
        """Answer what is not even a request; the connection can't be used further."""
        self._shared.stats.answered[answer.status] += 1
        self.write(answer.render(for_browser=False, with_body=True, keeps_alive=False))
        await self._linger()
        return False

    async def _reply(self, answer: Answer, head: RequestHead, body: BodyReader) -> bool:
        """Answer a request ourselves; whether another may follow."""
        self._shared.stats.answered[answer.status] += 1
        is_sane = True
        if not body.is_complete and self.pending:
            try:
                _, self.pending = body.feed(self.pending)
            except BadBody:
                is_sane = False
        keeps_alive = is_sane and body.is_complete and head.wants_keep_alive and not self._shared.is_closing
        # A client that asked to change protocols may already be speaking the other one.
        keeps_alive = keeps_alive and head.upgrade is None
        self.write(
            answer.render(for_browser=_is_browser(head), with_body=head.method != b"HEAD", keeps_alive=keeps_alive)
        )
        if not keeps_alive:
            await self._linger()
        return keeps_alive

    async def _linger(self) -> None:
        """Say that no more will come, and read on for a while: to close with unread bytes is to reset the
        connection, and the client would lose the answer."""
        if not self.is_open or self.transport is None:
            return
        self.deadline_s = self._shared.clock.monotonic_s() + self._shared.limits.linger_timeout_s
        self.transport.write_eof()
        self.attach(lambda _: None)
        while self.is_open:
            await self.more()


def _is_browser(head: RequestHead) -> bool:
    """A page is for those who ask for one; scripts in a browser accept anything and want JSON."""
    accept = head.get(b"accept")
    if accept is not None:
        return b"text/html" in accept
    return b"Mozilla/" in (head.get(b"user-agent") or b"")
