"""One stream of an HTTP/2 connection: the client's side of an exchange, with both directions' flow control.

client's DATA ─▶ sink            the stream's window is opened again only when the sandbox takes what came
sandbox's bytes ─▶ outbox ─▶     DATA as far as the client's windows reach; beyond OUTBOX_HIGH_BYTES the
                                 sandbox's connection is not read
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from h2.errors import ErrorCodes

from firebrick.edge import answers
from firebrick.edge.answers import Answer, is_browser
from firebrick.edge.bodies import BadBody, BodyReader
from firebrick.edge.downstream import PayloadSink
from firebrick.edge.exchange import Ending, Truncated
from firebrick.edge.h2_heads import Pair, answer_pairs, request_of, response_pairs
from firebrick.edge.heads import BadHead, RequestHead, ResponseHead
from firebrick.edge.link import HOLD_PEER, Source
from firebrick.edge.visit import Visit
from firebrick.log import get_log

if TYPE_CHECKING:
    from firebrick.edge.h2_link import H2Link

STREAM_WINDOW_BYTES = 256 * 1024
OUTBOX_HIGH_BYTES = 64 * 1024
OUTBOX_LOW_BYTES = 16 * 1024
BATCH_S = 0.003
BATCH_BYTES = 4 * 1024
"""Small output waits this long at most, or until there is this much of it. Rust's `h2`, which E2B's client uses, ends
the whole connection when thousands of DATA frames below 256 bytes lie unread (RUSTSEC-2026-0258)."""

log = get_log("edge")


class H2Stream:
    """A Downstream, and the task that serves it."""

    def __init__(self, link: "H2Link", stream_id: int) -> None:
        self.keeps_alive = True
        self.outbox = bytearray()
        self.is_over = False
        """Nothing may be sent on it any more."""
        self._link = link
        self.stream_id = stream_id
        self._task: asyncio.Task[None] | None = None
        self._visit: Visit | None = None
        self._is_body_complete = False
        self._sink: PayloadSink | None = None
        self._early = bytearray()
        self._unopened_bytes = 0
        self._holds = 0
        self._fed_by: Source | None = None
        self._has_begun = False
        self._is_last_boxed = False
        """The outbox holds the end of the answer."""
        self._has_ended = False
        self._is_draining = False
        """The answer is given; what still comes of the body is dropped, for as long as a client may linger."""
        self._linger: asyncio.TimerHandle | None = None
        self._flushed_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # The request.

    def start(self, pairs: list[Pair], *, has_ended: bool) -> None:
        self._is_body_complete = has_ended
        try:
            head = request_of(pairs, has_ended=has_ended)
        except BadHead as exc:
            self._reply(answers.bad_request(exc.message, exc.status), None)
            return
        shared = self._link.shared
        self._visit = Visit(shared, self, head, peer_is_loopback=self._link.peer_is_loopback)
        self._task = shared.spawn(self._serve(self._visit, head))

    async def _serve(self, visit: Visit, head: RequestHead) -> None:
        try:
            outcome = await visit.run()
        except Truncated:
            self._link.shared.stats.broken_count += 1
            self.reset()
        except Exception:  # the root of this task: a defect costs this stream, not the edge
            log.exception("edge.stream_failed")
            self.reset()
        else:
            if isinstance(outcome, Answer):
                self._reply(outcome, head)
            elif outcome is Ending.LINGER:
                self._drain()

    def _reply(self, answer: Answer, head: RequestHead | None) -> None:
        """Answer ourselves; what is left of the request's body is refused once that is said."""
        self._link.shared.stats.answered[answer.status] += 1
        pairs, body = answer_pairs(answer, for_browser=head is not None and is_browser(head))
        if head is not None and head.method == b"HEAD":
            body = b""
        self._send_head(pairs, body, is_last=True)
        self._drain()

    def _drain(self) -> None:
        """Some clients read an answer only when they have sent their body: let them, and reset who goes on and on."""
        self._early.clear()
        self._is_draining = True
        self._settle()
        if not self.is_over:
            limit_s = self._link.shared.limits.linger_timeout_s
            self._linger = asyncio.get_running_loop().call_later(limit_s, self._refuse)
            self._open_window()

    def _refuse(self) -> None:
        if not self.is_over and not self._is_body_complete:
            self._link.reset_stream(self.stream_id, ErrorCodes.NO_ERROR)
            self._end()

    def abandon(self) -> None:
        """The client has reset the stream, or the connection is lost: its exchange ends at once."""
        self._end()
        if self._task is not None:
            self._task.cancel()

    def _end(self) -> None:
        self.is_over = True
        self.outbox.clear()
        for timer in (self._timer, self._linger):
            if timer is not None:
                timer.cancel()
        if self._fed_by is not None:
            self._fed_by.release(HOLD_PEER)
        self._link.forget(self.stream_id)

    def take_data(self, payload: bytes, counted_bytes: int) -> None:
        """`counted_bytes` includes padding: what the stream's window lost."""
        self._unopened_bytes += counted_bytes
        if self._sink is not None:
            self._sink(payload, False)
        elif not self._is_draining:
            self._early += payload
            return
        self._open_window()

    def take_end(self) -> None:
        self._is_body_complete = True
        if self._sink is not None:
            self._sink(b"", True)
        self._settle()

    def _settle(self) -> None:
        """Over when both sides are closed."""
        if self._has_ended and self._is_body_complete and not self.is_over:
            self._end()

    def _open_window(self) -> None:
        if not self._holds and not self._is_body_complete and self._unopened_bytes >= STREAM_WINDOW_BYTES // 4:
            opened, self._unopened_bytes = self._unopened_bytes, 0
            self._link.open_window(self.stream_id, opened)

    # The Downstream.

    @property
    def source(self) -> Source:
        return self

    def hold(self, why: int) -> None:
        self._holds |= why

    def release(self, why: int) -> None:
        self._holds &= ~why
        self._open_window()

    @property
    def is_body_complete(self) -> bool:
        return self._is_body_complete and not self._early

    def read_body(self, sink: PayloadSink, on_bad: Callable[[BadBody], None]) -> None:
        self._sink = sink
        early, self._early = bytes(self._early), bytearray()
        if early or self._is_body_complete:
            sink(early, self._is_body_complete)
        self._open_window()

    def stop_body(self) -> None:
        self._sink = None

    def feed_from(self, source: Source | None) -> None:
        if self._fed_by is not None and self._fed_by is not source:
            self._fed_by.release(HOLD_PEER)
        self._fed_by = source
        if source is not None and len(self.outbox) > OUTBOX_HIGH_BYTES:
            source.hold(HOLD_PEER)

    def interim(self, response: ResponseHead) -> None:
        if not self.is_over:
            self._link.send_headers(self.stream_id, response_pairs(response, None), is_last=False)

    def begin(self, response: ResponseHead, body: BodyReader, payload: bytes) -> None:
        self._send_head(response_pairs(response, body), payload, is_last=body.is_complete)

    def _send_head(self, pairs: list[Pair], payload: bytes, *, is_last: bool) -> None:
        if self.is_over:
            return
        self._has_begun = True
        self.outbox += payload
        if is_last and not payload:
            self._link.send_headers(self.stream_id, pairs, is_last=True)
            self.sent(is_last=True)
            return
        self._is_last_boxed = is_last
        self._link.send_headers(self.stream_id, pairs, is_last=False)
        self._link.pump(self)

    def send(self, payload: bytes, *, is_last: bool) -> None:
        if self.is_over:
            return
        self.outbox += payload
        self._is_last_boxed = is_last
        if len(self.outbox) > OUTBOX_HIGH_BYTES and self._fed_by is not None:
            self._fed_by.hold(HOLD_PEER)
        wait_s = self._flushed_s + BATCH_S - self._link.now_s()
        if is_last or wait_s <= 0 or len(self.outbox) >= BATCH_BYTES:
            self._link.pump(self)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._link.pump, self)

    def tunnel(self, response: ResponseHead, consume: Callable[[bytes], None]) -> None:
        raise AssertionError("a stream of HTTP/2 never asks for another protocol")

    def reset(self) -> None:
        if not self.is_over:
            self._link.reset_stream(self.stream_id, ErrorCodes.INTERNAL_ERROR)
            self._end()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    # The connection's side.

    def give_data(self, most_bytes: int) -> bytes:
        """Take from the outbox, as much as may be sent; lets the sandbox's connection go on when it has room."""
        piece = bytes(self.outbox[:most_bytes])
        del self.outbox[:most_bytes]
        if len(self.outbox) < OUTBOX_LOW_BYTES and self._fed_by is not None:
            self._fed_by.release(HOLD_PEER)
        return piece

    @property
    def wants_to_send(self) -> bool:
        return self._has_begun and not self._has_ended and not self.is_over and bool(self.outbox or self._is_last_boxed)

    @property
    def is_at_end(self) -> bool:
        """What was taken last was the end of the answer."""
        return self._is_last_boxed and not self.outbox

    def sent(self, *, is_last: bool) -> None:
        self._flushed_s = self._link.now_s()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if is_last:
            self._has_ended = True
            self._settle()
