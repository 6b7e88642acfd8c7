"""Heads in HTTP/2: what h2 has decoded and checked becomes the head that every other part of the edge knows."""

import re
from collections.abc import Iterable

from firebrick.edge.answers import Answer
from firebrick.edge.bodies import BodyReader
from firebrick.edge.heads import SINGLE, TARGET, BadHead, Header, RequestHead, ResponseHead, length_of

Pair = tuple[bytes, bytes]

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+\Z")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")
_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]{0,31}\Z")


def request_of(pairs: Iterable[Pair], *, has_ended: bool) -> RequestHead:
    """The request that these headers make; h2 has seen to the pseudo-headers' presence and order.

    Raises: BadHead — what could be read differently once it is written in HTTP/1.1, or is not offered here.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: list[Header] = []
    single: dict[bytes, bytes] = {}
    cookies: list[bytes] = []
    for name, value in pairs:
        if name.startswith(b":"):
            pseudo[name] = value
            continue
        value = value.strip(b" \t")
        if _NAME.match(name) is None or _VALUE.match(value) is None:
            raise BadHead("A header holds characters that HTTP does not allow.")
        if name == b"cookie":
            # HTTP/2 may send a cookie in crumbs; HTTP/1.1 wants one line.
            cookies.append(value)
            continue
        if name in SINGLE:
            if name in single:
                raise BadHead(f"The header {name.decode('latin-1')} stands twice.")
            single[name] = value
        headers.append((name, name, value))
    if cookies:
        headers.append((b"cookie", b"cookie", b"; ".join(cookies)))
    method, target = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if method == b"CONNECT":
        raise BadHead("CONNECT is not offered here.", 405)
    if _METHOD.match(method) is None or TARGET.match(target) is None:
        raise BadHead("The method or the path is not valid.")
    host = pseudo.get(b":authority") or single.get(b"host")
    if not host or single.get(b"host", host).lower() != host.lower():
        raise BadHead("The authority is missing, or the Host header names another.")
    if single.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise BadHead("Only 'Expect: 100-continue' is understood.", 417)
    length_bytes = length_of(single)
    if has_ended and length_bytes:
        raise BadHead("Content-Length promises a body, and there is none.")
    return RequestHead(
        method=method,
        target=target,
        is_http10=False,
        headers=headers,
        host=host,
        single=single,
        connection=frozenset(),
        length_bytes=length_bytes,
        is_chunked=length_bytes is None and not has_ended,
        upgrade=None,
    )


def response_pairs(response: ResponseHead, body: BodyReader | None) -> list[Pair]:
    """The headers of a sandbox's answer; `body` None for one of status 1xx."""
    pairs: list[Pair] = [(b":status", b"%d" % response.status)]
    pairs += ((lower, value) for lower, _, value in response.passed_on())
    if body is not None and response.length_bytes is not None and response.status != 204:
        pairs.append((b"content-length", b"%d" % response.length_bytes))
    return pairs


def answer_pairs(answer: Answer, *, for_browser: bool) -> tuple[list[Pair], bytes]:
    """An answer of the edge's own, as headers and body."""
    headers, body = answer.parts(for_browser=for_browser)
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers]
    return [(b":status", b"%d" % answer.status), *pairs], body
