"""A client's HTTP/1.1 connection: reads its requests one after the other and sees each to its end.

idle ─▶ head ─▶ exchange ─▶ idle …         each state has its deadline, kept by the owner's sweep:
          └─▶ own answer ─▶ idle | linger  idle 620 s, head 30 s, linger 5 s; an exchange has none
"""

import asyncio

from firebrick.edge import answers
from firebrick.edge.answers import Answer, is_browser
from firebrick.edge.bodies import BadBody
from firebrick.edge.downstream import HttpSide
from firebrick.edge.exchange import Ending, Truncated
from firebrick.edge.heads import BadHead, RequestHead, parse_request
from firebrick.edge.link import HEAD_LIMIT_BYTES, HeadTooLarge, Link
from firebrick.edge.target import is_loopback_address
from firebrick.edge.visit import Shared, Visit
from firebrick.log import get_log

log = get_log("edge")


class ClientLink(Link):
    """One accepted connection; its task is `serve`."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.deadline_s: float | None = None
        self.is_idle = False
        self._shared = shared
        self._task: asyncio.Task[None] | None = None
        self._visit: Visit | None = None
        self._is_reading_head = False
        self._peer_is_loopback = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        shared = self._shared
        if shared.is_closing or not shared.has_room():
            shared.stats.answered[503] += 1
            self.write(answers.too_many().render(for_browser=False, with_body=True, keeps_alive=False))
            self.close()
            return
        peer = transport.get_extra_info("peername")
        self._peer_is_loopback = bool(peer) and is_loopback_address(peer[0])
        shared.clients.add(self)
        shared.stats.connection_count = len(shared.clients)
        self._task = shared.spawn(self.serve())

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
        if self._visit is not None and self._visit.is_under_way and self._task is not None:
            self._task.cancel()

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
        side = HttpSide(self, head, may_keep_alive=not self._shared.is_closing)
        self._visit = Visit(self._shared, side, head, peer_is_loopback=self._peer_is_loopback)
        try:
            outcome = await self._visit.run()
        except Truncated:
            self._shared.stats.broken_count += 1
            self.reset()
            return False
        finally:
            self._visit = None
        if isinstance(outcome, Answer):
            return await self._reply(outcome, head, side)
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

    async def _refuse(self, answer: Answer) -> bool:
        """Answer what is not even a request; the connection can't be used further."""
        self._shared.stats.answered[answer.status] += 1
        self.write(answer.render(for_browser=False, with_body=True, keeps_alive=False))
        await self._linger()
        return False

    async def _reply(self, answer: Answer, head: RequestHead, side: HttpSide) -> bool:
        """Answer a request ourselves; whether another may follow."""
        self._shared.stats.answered[answer.status] += 1
        is_sane, body = True, side.body
        if not body.is_complete and self.pending:
            try:
                _, self.pending = body.feed(self.pending)
            except BadBody:
                is_sane = False
        keeps_alive = is_sane and body.is_complete and head.wants_keep_alive and not self._shared.is_closing
        # A client that asked to change protocols may already be speaking the other one.
        keeps_alive = keeps_alive and head.upgrade is None
        self.write(
            answer.render(for_browser=is_browser(head), with_body=head.method != b"HEAD", keeps_alive=keeps_alive)
        )
        if not keeps_alive:
            await self._linger()
        return keeps_alive

    async def _linger(self) -> None:
        """Say that no more will come, and read on for a while: to close with unread bytes is to reset the
        connection, and the client would lose the answer."""
        if not self.is_open:
            return
        self.deadline_s = self._shared.clock.monotonic_s() + self._shared.limits.linger_timeout_s
        self.end_writing()
        self.attach(lambda _: None)
        while self.is_open:
            await self.more()
