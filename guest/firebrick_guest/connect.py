"""The Connect protocol in JSON over HTTP/1.1: unary calls, server streams and client streams.

Only JSON, only uncompressed: that is what E2B's clients speak to an agent. Everything else is refused with
the code that the protocol names for it.
"""

from collections.abc import Awaitable, Callable

from firebrick_guest.errors import STATUS_BY_CODE, ConnectError
from firebrick_guest.http import Exchange
from firebrick_guest.json_text import dump_json, load_json

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
DEFAULT_KEEPALIVE_S = 90
END_FLAG = 0x02
COMPRESSED_FLAG = 0x01

Message = dict[str, object]
UnaryHandler = Callable[[Exchange, Message], Awaitable[Message | bytes]]
"""Answers a message, or its JSON."""
StreamHandler = Callable[["ServerStream", Message], Awaitable[None]]
ClientStreamHandler = Callable[[Exchange, "MessageReader"], Awaitable[Message]]

_UNARY_HEADERS = "Content-Type: application/json\r\n"
_STREAM_HEADERS = "Content-Type: application/connect+json\r\nCache-Control: no-store\r\n"


def frame(payload: bytes, flags: int = 0) -> bytes:
    """One enveloped message."""
    return bytes((flags,)) + len(payload).to_bytes(4, "big") + payload


def end_frame(error: ConnectError | None = None) -> bytes:
    trailer: Message = {"error": {"code": error.code, "message": error.message}} if error else {}
    return frame(dump_json(trailer), END_FLAG)


def answer_error(exchange: Exchange, error: ConnectError) -> None:
    exchange.answer_json(STATUS_BY_CODE[error.code], {"code": error.code, "message": error.message})


class FrameDecoder:
    """Cut a byte stream into messages. Pure; fed with any slicing."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._is_ended = False

    def feed(self, data: bytes | bytearray) -> None:
        self._buffer += data

    def next(self) -> bytes | None:
        """The next message, None when more bytes are needed. Raises ConnectError."""
        buffer = self._buffer
        if len(buffer) < 5:
            return None
        flags = buffer[0]
        size = int.from_bytes(buffer[1:5], "big")
        if flags & COMPRESSED_FLAG:
            raise ConnectError("internal", "a compressed message, but no compression was agreed on")
        if flags:
            raise ConnectError("invalid_argument", f"unknown envelope flags {flags:#04x}")
        if size > MAX_MESSAGE_BYTES:
            raise ConnectError("resource_exhausted", f"a message is longer than {MAX_MESSAGE_BYTES} bytes")
        if len(buffer) < 5 + size:
            return None
        payload = bytes(buffer[5 : 5 + size])
        del buffer[: 5 + size]
        return payload

    def finish(self) -> None:
        """The stream has ended. Raises ConnectError when that is in the middle of a message."""
        if self._buffer:
            raise ConnectError("invalid_argument", "the stream ends inside a message")


class MessageReader:
    """The messages a client streams to us."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._decoder = FrameDecoder()

    async def next(self) -> Message | None:
        """The next message, None at the end of the stream. Raises ConnectError, HttpError."""
        while True:
            payload = self._decoder.next()
            if payload is not None:
                return load_json(payload)
            piece = await self._exchange.read()
            if not piece:
                self._decoder.finish()
                return None
            self._decoder.feed(piece)


class ServerStream:
    """The messages we stream to a client. Nothing is sent before the first `send`, so that the beginning of
    the answer and its first message share a packet."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def send(self, payload: bytes) -> None:
        self.send_frames(frame(payload))

    def send_frames(self, frames: bytes) -> None:
        """Send what is enveloped already, in one write."""
        if self.exchange.is_answered:
            self.exchange.write(frames)
        else:
            self.exchange.begin_stream(200, _STREAM_HEADERS, frames)

    def end(self, error: ConnectError | None = None, last: bytes = b"") -> None:
        """End the stream; `last` are enveloped messages that go out in the same write."""
        if not self.exchange.is_answered:
            self.exchange.begin_stream(200, _STREAM_HEADERS)
        self.exchange.end_stream(last + end_frame(error))

    async def drain(self, ahead_bytes: int) -> None:
        """Wait while the client has more than `ahead_bytes` to read."""
        await self.exchange.drain(ahead_bytes)


def timeout_s(exchange: Exchange) -> float | None:
    """What Connect-Timeout-Ms asks for. Raises ConnectError."""
    raw = exchange.head.headers.get("connect-timeout-ms")
    if raw is None:
        return None
    if not raw.isascii() or not raw.isdigit() or len(raw) > 10:
        raise ConnectError("invalid_argument", "Connect-Timeout-Ms must be a whole number of at most 10 digits")
    return int(raw) / 1000


def keepalive_s(exchange: Exchange) -> int:
    """How long a stream may be silent."""
    raw = exchange.head.headers.get("keepalive-ping-interval", "")
    if raw.isascii() and raw.isdigit() and len(raw) < 7 and int(raw) > 0:
        return int(raw)
    return DEFAULT_KEEPALIVE_S


async def serve_unary(exchange: Exchange, handler: UnaryHandler) -> None:
    headers = exchange.head.headers
    if not _is_json(headers.get("content-type", ""), "application/json"):
        exchange.answer(415, "Accept-Post: application/json\r\n")
        return
    try:
        _check_coding(headers.get("content-encoding"))
        timeout_s(exchange)
        if exchange.head.length > MAX_MESSAGE_BYTES:
            raise ConnectError("resource_exhausted", f"the message is longer than {MAX_MESSAGE_BYTES} bytes")
        request = load_json(await exchange.read_all(MAX_MESSAGE_BYTES))
        answer = await handler(exchange, request)
    except ConnectError as error:
        answer_error(exchange, error)
        return
    exchange.answer(200, _UNARY_HEADERS, answer if isinstance(answer, bytes) else dump_json(answer))


async def serve_stream(exchange: Exchange, handler: StreamHandler) -> None:
    """One message in, many out."""
    if not _is_stream(exchange):
        return
    stream = ServerStream(exchange)
    try:
        _check_coding(exchange.head.headers.get("connect-content-encoding"))
        reader = MessageReader(exchange)
        request = await reader.next()
        if request is None:
            raise ConnectError("invalid_argument", "the request holds no message")
        if await reader.next() is not None:
            raise ConnectError("invalid_argument", "the request holds more than one message")
        await handler(stream, request)
    except ConnectError as error:
        stream.end(error)


async def serve_client_stream(exchange: Exchange, handler: ClientStreamHandler) -> None:
    """Many messages in, one out."""
    if not _is_stream(exchange):
        return
    stream = ServerStream(exchange)
    try:
        _check_coding(exchange.head.headers.get("connect-content-encoding"))
        answer = await handler(exchange, MessageReader(exchange))
    except ConnectError as error:
        stream.end(error)
        return
    stream.end(last=frame(dump_json(answer)))


def _is_stream(exchange: Exchange) -> bool:
    if _is_json(exchange.head.headers.get("content-type", ""), "application/connect+json"):
        return True
    exchange.answer(415, "Accept-Post: application/connect+json\r\n")
    return False


def _is_json(content_type: str, wanted: str) -> bool:
    kind, _, parameters = content_type.lower().partition(";")
    return kind.strip() == wanted and parameters.strip().replace('"', "") in ("", "charset=utf-8")


def _check_coding(coding: str | None) -> None:
    if coding not in (None, "", "identity"):
        raise ConnectError("unimplemented", "unknown compression; supported: identity")
