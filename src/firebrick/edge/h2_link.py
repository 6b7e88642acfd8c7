"""A client's HTTP/2 connection: frames by the library h2, streams by `H2Stream`, limits here.

Frames that cost us something and bring nobody anything are counted against a budget that fills slowly: resets,
pings, settings, priorities, empty data. Who overdraws it is told to calm down and disconnected.
"""

import asyncio
from typing import Any

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error, ProtocolError
from h2.settings import SettingCodes, Settings

from firebrick.edge.h2_heads import Pair
from firebrick.edge.h2_stream import STREAM_WINDOW_BYTES, H2Stream
from firebrick.edge.link import HEAD_LIMIT_BYTES, Link
from firebrick.edge.target import is_loopback_address
from firebrick.edge.visit import Shared
from firebrick.log import get_log

CONNECTION_WINDOW_BYTES = 8 * 1024 * 1024
"""Opened again as data comes, whatever becomes of it: one stream that is not read must not stop the others."""
QUANTUM_BYTES = 64 * 1024
"""What a stream sends before it is the next one's turn."""
BACKLOG_LIMIT_BYTES = 4 * 1024 * 1024
"""Unsent bytes of ours, beyond all flow control: heads and answers to frames that the client does not read."""
BUDGET_COUNT = 2_000.0
BUDGET_PER_S = 100.0

log = get_log("edge")


class Budget:
    """How many useless frames a client may send: BUDGET_COUNT at once, BUDGET_PER_S for long."""

    __slots__ = ("_at_s", "_left")

    def __init__(self, now_s: float) -> None:
        self._left = BUDGET_COUNT
        self._at_s = now_s

    def spend(self, now_s: float) -> bool:
        """Whether there was enough."""
        self._left = min(BUDGET_COUNT, self._left + (now_s - self._at_s) * BUDGET_PER_S) - 1
        self._at_s = now_s
        return self._left >= 0


class H2Link(Link):
    """One accepted connection; it has no task of its own, each stream has one."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.shared = shared
        self.deadline_s: float | None = None
        self.is_idle = True
        self.peer_is_loopback = False
        self.now_s = shared.clock.monotonic_s
        self._streams: dict[int, H2Stream] = {}
        self._waiting: dict[int, H2Stream] = {}
        """Streams with something to send, in the order of their turns."""
        self._unopened_bytes = 0
        self._budget = Budget(self.now_s())
        self._is_ending = False
        self._is_feeding = False
        config = H2Configuration(
            client_side=False, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self._h2 = H2Connection(config)
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: shared.limits.streams_count,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                SettingCodes.MAX_FRAME_SIZE: STREAM_WINDOW_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEAD_LIMIT_BYTES,
            },
        )
        self._h2.max_inbound_frame_size = STREAM_WINDOW_BYTES

    # The loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        shared = self.shared
        peer = transport.get_extra_info("peername")
        self.peer_is_loopback = bool(peer) and is_loopback_address(peer[0])
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - self._h2.inbound_flow_control_window)
        if shared.is_closing or not shared.has_room():
            shared.stats.answered[503] += 1
            self._end(ErrorCodes.REFUSED_STREAM)
            return
        shared.clients.add(self)
        shared.stats.connection_count = len(shared.clients)
        self.deadline_s = self.now_s() + shared.limits.head_timeout_s
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        self._is_feeding = True
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
        except (H2Error, UnicodeError) as exc:
            # h2 has a GOAWAY ready that says which rule was broken.
            log.info("edge.h2_refused", reason=str(exc)[:120])
            self._is_feeding = False
            self._end(None)
            return
        finally:
            self._is_feeding = False
        if self._unopened_bytes > CONNECTION_WINDOW_BYTES // 4:
            self._h2.increment_flow_control_window(self._unopened_bytes)
            self._unopened_bytes = 0
        self._flush()
        if self.transport is not None and self.transport.get_write_buffer_size() > BACKLOG_LIMIT_BYTES:
            self._end(ErrorCodes.ENHANCE_YOUR_CALM)

    def eof_received(self) -> bool | None:
        self.saw_eof = True
        self._abandon_all()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._abandon_all()
        self.shared.clients.discard(self)
        self.shared.stats.connection_count = len(self.shared.clients)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._pump_all()

    def _take(self, event: events.Event) -> None:
        match event:
            case events.RequestReceived(stream_id=int(stream_id)):
                self.is_idle, self.deadline_s = False, None
                stream = self._streams[stream_id] = H2Stream(self, stream_id)
                stream.start(_pairs(event.headers), has_ended=event.stream_ended is not None)
            case events.DataReceived(stream_id=int(stream_id), data=payload):
                counted = event.flow_controlled_length or 0
                self._unopened_bytes += counted
                if not payload and event.stream_ended is None:
                    self._charge()
                if payload and (found := self._streams.get(stream_id)) is not None:
                    found.take_data(payload, counted)
            case events.StreamEnded(stream_id=int(stream_id)):
                if (found := self._streams.get(stream_id)) is not None:
                    found.take_end()
            case events.StreamReset(stream_id=int(stream_id)):
                self._charge()
                if (found := self._streams.get(stream_id)) is not None:
                    found.abandon()
            case events.WindowUpdated() | events.RemoteSettingsChanged():
                if isinstance(event, events.RemoteSettingsChanged):
                    self._charge()
                    if not self._streams:
                        self.forget(0)
                self._pump_all()
            case events.PingReceived() | events.PriorityUpdated() | events.UnknownFrameReceived():
                self._charge()
            case events.ConnectionTerminated():
                self._is_ending = not self._streams
                if self._is_ending:
                    self.close()
            case _:
                pass

    def _charge(self) -> None:
        if not self._budget.spend(self.now_s()):
            self.shared.stats.answered[429] += 1
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            raise ProtocolError("too many frames that ask for nothing")

    # The streams' side.

    def send_headers(self, stream_id: int, pairs: list[Pair], *, is_last: bool) -> None:
        self._h2.send_headers(stream_id, pairs, end_stream=is_last)
        self._flush()

    def reset_stream(self, stream_id: int, code: ErrorCodes) -> None:
        if not self._is_ending:
            self._h2.reset_stream(stream_id, code)
            self._flush()

    def open_window(self, stream_id: int, count_bytes: int) -> None:
        if not self._is_ending:
            self._h2.increment_flow_control_window(count_bytes, stream_id)
            self._flush()

    def pump(self, stream: H2Stream) -> None:
        """Send what that stream has, as far as it may now; the rest when the client says so."""
        if stream.wants_to_send:
            self._waiting[stream.stream_id] = stream
            self._pump_all()

    def forget(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        self._waiting.pop(stream_id, None)
        if not self._streams:
            self.is_idle = True
            self.deadline_s = self.now_s() + self.shared.limits.idle_timeout_s
            if self.shared.is_closing and not self._is_ending:
                self.close()

    def _pump_all(self) -> None:
        """Turn by turn, until nobody may send any more or our own buffer is full."""
        has_moved = True
        while has_moved and self._waiting and not self.is_full and not self._is_ending:
            has_moved = False
            for stream_id in list(self._waiting):
                stream = self._waiting.get(stream_id)
                if stream is not None and self._send_turn(stream):
                    has_moved = True
                if self.is_full:
                    break
            self._flush()

    def _send_turn(self, stream: H2Stream) -> bool:
        """A quantum of one stream; whether anything was sent."""
        sent_bytes = 0
        while stream.wants_to_send and sent_bytes < QUANTUM_BYTES:
            room = self._h2.local_flow_control_window(stream.stream_id)
            if room <= 0 and stream.outbox:
                break
            piece = stream.give_data(min(room, self._h2.max_outbound_frame_size))
            is_last = stream.is_at_end
            self._h2.send_data(stream.stream_id, piece, end_stream=is_last)
            sent_bytes += len(piece) + is_last
            stream.sent(is_last=is_last)
        if not stream.wants_to_send:
            self._waiting.pop(stream.stream_id, None)
        return sent_bytes > 0

    def _flush(self) -> None:
        """Hand over what h2 has ready; while frames are taken in, once at their end."""
        if not self._is_feeding and (data := self._h2.data_to_send()):
            self.write(data)

    # The owner's side.

    async def serve(self) -> None:
        """Nothing to do: the streams have tasks."""

    def expire(self) -> None:
        self._end(ErrorCodes.NO_ERROR)

    def close(self) -> None:
        if not self._is_ending:
            self._end(ErrorCodes.NO_ERROR)
        else:
            super().close()

    def reset(self) -> None:
        self._is_ending = True
        self._abandon_all()
        super().reset()

    def _end(self, code: ErrorCodes | None) -> None:
        """Say goodbye with that code (None: h2 has said it) and close."""
        if code is not None and not self._is_ending:
            try:
                self._h2.close_connection(code)
            except ProtocolError:
                pass  # closed already
        self._flush()
        self._is_ending = True
        self._abandon_all()
        super().close()

    def _abandon_all(self) -> None:
        self._is_ending = True
        for stream in list(self._streams.values()):
            stream.abandon()


def _pairs(headers: Any) -> list[Pair]:
    """Without an encoding h2 gives bytes; its annotation allows for text too."""
    return [(bytes(name), bytes(value)) for name, value in headers or ()]
