"""The host in the head of an HTTP/1 request (RFC 9112 sections 2 to 5). Pure."""

import re

from firebrick.network.name_filter.heads import HEAD_BYTES, Head, Incomplete, Malformed, Reading, head_of_host

_METHOD_BEGINS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{0,32}")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!-~\x80-\xff]+) HTTP/1\.[01]\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0\r\n]*?)[ \t]*\Z")
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(rb"(\[[^\]@/]*\]|[^:@/\[\]]+)(?::[0-9]{0,5})?\Z")


def read_request_head(data: bytes) -> Reading:
    """What is known of a connection that began with `data`. Bytes behind the head are not looked at."""
    begun = _METHOD_BEGINS.match(data)
    assert begun is not None
    if data[begun.end() : begun.end() + 1] not in (b"", b" ") or (begun.end() == 0 and data):
        return Malformed("no HTTP")
    end = data.find(b"\r\n\r\n", 0, HEAD_BYTES)
    head = data[: end if end >= 0 else HEAD_BYTES]
    if re.search(rb"(?<!\r)\n|\r(?!\n|\Z)", head):
        return Malformed("a line that does not end in CRLF")
    if end < 0:
        return Incomplete() if len(data) < HEAD_BYTES else Malformed("a request head that is too long")
    first, *lines = head.split(b"\r\n")
    request = _REQUEST_LINE.match(first)
    if request is None:
        return Malformed("no HTTP/1 request")
    fields = [_FIELD.match(line) for line in lines]
    hosts = [field[2] for field in fields if field is not None and field[1].lower() == b"host"]
    if None in fields:
        return Malformed("a header that is none")
    if len(hosts) > 1:
        return Malformed("several Host headers")
    return _agree(request[1], request[2], _host(hosts[0]) if hosts else Head(None))


def _host(text: bytes) -> Head | Malformed:
    if not text:
        return Head(None)
    match = _HOST.match(text)
    return head_of_host(match[1]) if match is not None else Malformed("a Host header that is no host")


def _agree(method: bytes, target: bytes, host: Head | Malformed) -> Head | Malformed:
    """A target may name a host too: servers then go by it, so both must be the same."""
    if isinstance(host, Malformed) or target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return host
    if _ABSOLUTE.match(target) is None:
        return Malformed("a request to a proxy")
    scheme, _, rest = target.partition(b"://")
    named = _host(re.split(rb"[/?#]", rest, maxsplit=1)[0])
    if scheme.lower() != b"http" or named != host:
        return Malformed("a target that is not on the host of its Host header")
    return host
