"""Hostile requests over the wire: whatever comes, the agent answers or hangs up, and goes on.

`FIREBRICK_FUZZ_EXAMPLES=20000` makes it harsher. What was once a fault stays in CASES.
"""

import errno
import gzip
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.guest.agent import ACCESS_TOKEN, CONTROL_TOKEN, Agent

# How far each agent's log has been read.
SEEN: dict[Agent, int] = {}
FUZZ = settings(
    max_examples=int(os.environ.get("FIREBRICK_FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
# Nothing here may remove, move or start anything: the agent may be root, and the machine is a real one.
HARMLESS = [f"filesystem.Filesystem/{name}" for name in ("Stat", "ListDir", "GetWatcherEvents", "RemoveWatcher")]
PROCESS = [
    f"process.Process/{name}"
    for name in ("List", "Connect", "Update", "SendInput", "StreamInput", "SendSignal", "CloseStdin")
]
STREAMS = ["process.Process/Connect", "process.Process/StreamInput", "filesystem.Filesystem/WatchDir"]

TRAPS = ["/", ".", "..", "~", "~/", "~root/x", "/../../..", "/proc/self/environ", "/dev/null", "", "nul\0"]
TRAPS += ["loop", "loop/x", "fifo", "file/x"]
LONG = ["a/" * 10_000, "x" * 256, "x" * 70_000]
NOT_UTF8 = b"\x80".decode("latin-1")
FIELDS = """path depth recursive includeEntry watcherId watcher_id process pid tag input stdin pty signal size cols rows
start data keepalive source destination"""
HEADERS = """Accept-Encoding Authorization Connect-Timeout-Ms Connect-Protocol-Version Content-Encoding Content-Type
Expect Firebrick-Since If-Modified-Since If-None-Match If-Range Keepalive-Ping-Interval Range Transfer-Encoding Upgrade
X-Access-Token X-Metadata-a X-Metadata- Content-Length Connection"""
HEADER_VALUES = """gzip|gzip;q=|*;q=0|identity|bytes=0-|bytes=-0|bytes=-99999999999999999999|bytes=5-1,2-|close|W/""
multipart/form-data; boundary=|multipart/form-data; boundary="B|application/connect+json|Basic !!!|Basic OjpyOg==
Basic cm9vdDo=|Mon, 99 Foo 0000 00:00:00 GMT|Thu, 01 Jan 1970 00:00:00 GMT|100-continue|chunked|-1|0|1"""

paths = st.one_of(st.sampled_from([*TRAPS, *LONG, NOT_UTF8]), st.text(max_size=20))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    paths,
    st.sampled_from(["!!!", "QUJD", "99999999999999999999", "-1", "1e5", "\ud800"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(FIELDS.split())
messages = st.dictionaries(fields, st.one_of(values, st.dictionaries(fields, values, max_size=3)), max_size=5)
known_values = [value.encode() for line in HEADER_VALUES.splitlines() for value in line.split("|")]
odd_values = [b"9" * 30, b"x" * 5000, b"\xff\xfe", b"\xc2\xb2"]
header_values = st.one_of(st.sampled_from([*known_values, *odd_values]), st.binary(max_size=12))
headers = st.lists(st.tuples(st.sampled_from(HEADERS.split()), header_values), max_size=3)
PARTS = [
    b"--B",
    b"--B\r\n",
    b"\r\n--B--",
    b"\r\n--B\r\n",
    b"\r\n\r\n",
    b'Content-Disposition: form-data; name="file"',
    b'; filename="PLACE/a"',
    b'; filename="PLACE/' + b"b/" * 3000,
    b'Content-Disposition: form-data; name="file"; filename="PLACE/f"\r\n\r\ndata',
    *(b"--", b"\\", b'"', b"\0", b"x" * 20_000),
]
HEAD_PARTS = [
    *(
        b"GET ",
        b"POST ",
        b"/files?path=",
        b"/health",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"Host: x",
    ),
    *(
        b":",
        b" ",
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"5\r\nabcde\r\n",
        b"0\r\n\r\n",
        b"%",
        b"%zz",
        b"&",
    ),
    *(b"ffffffffffffffff\r\n", b"="),
]


def request(method: str, target: str, given_headers: list[tuple[str, bytes]], body: bytes, length: int | None) -> bytes:
    lines = [f"{method} {target} HTTP/1.1".encode("latin-1", "replace")]
    named = {name.lower() for name, _ in given_headers}
    if "x-access-token" not in named:
        lines.append(f"X-Access-Token: {ACCESS_TOKEN}".encode())
    lines += [name.encode() + b": " + value for name, value in given_headers]
    if length is not None and not named & {"content-length", "transfer-encoding"}:
        lines.append(b"Content-Length: %d" % length)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def quoted(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))


def send(agent: Agent, raw: bytes) -> bytes:
    """Everything that comes back until the agent closes; it must, for we have hung up our half."""
    received = b""
    with socket.create_connection(("127.0.0.1", agent.port), timeout=20) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                received += piece
        except OSError as exc:
            # The agent gave up on us before we had said everything.
            if exc.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                raise
    return received


def check(agent: Agent, raw: bytes) -> None:
    answer = send(agent, raw)
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert not answer or status, (raw[:500], answer[:200])
    assert b"the guest agent failed" not in answer, raw[:2000]
    control = {"X-Firebrick-Control": CONTROL_TOKEN}
    seen = SEEN.get(agent, 0)
    log = agent.http.get(f"/firebrick/logs?since={seen}", headers=control).json()
    SEEN[agent] = log["next"]
    faults = [entry["fields"] for entry in log["entries"] if entry["message"] == "a request failed"]
    assert faults == [], raw[:2000]


@pytest.fixture
def place(folder: str) -> str:
    """A directory with traps in it, which relative paths of the requests may name."""
    os.symlink("loop", f"{folder}/loop")
    os.mkfifo(f"{folder}/fifo")
    Path(folder, "file").write_text("content of a file\n")
    return folder


def target_of(place: str, path: str) -> str:
    return path if path.startswith(("/", "~", ".")) or not path else f"{place}/{path}"


@given(path=paths, given_headers=headers, method=st.sampled_from(["GET", "HEAD", "PUT", "get", ""]))
@FUZZ
def test_downloads(agent: Agent, place: str, path: str, given_headers: list[tuple[str, bytes]], method: str) -> None:
    """Any path with any headers is a file or a refusal."""
    check(agent, request(method, f"/files?path={quoted(target_of(place, path))}", given_headers, b"", None))


@given(
    name=st.text(max_size=20).filter(lambda name: ".." not in name),
    given_headers=headers,
    body=st.binary(max_size=200),
    lie=st.sampled_from([0, 0, 1, -1, 10**6, 10**17]),
    packed=st.booleans(),
    kind=st.sampled_from([b"application/octet-stream", b"multipart/form-data; boundary=B", b"text/plain"]),
)
@FUZZ
def test_uploads(
    agent: Agent,
    place: str,
    name: str,
    given_headers: list[tuple[str, bytes]],
    body: bytes,
    lie: int,
    packed: bool,
    kind: bytes,
) -> None:
    """Any body of any kind, with a length that may be a lie, is written or refused."""
    if packed:
        body = gzip.compress(body)[: len(body) + 15]
        given_headers = [("Content-Encoding", b"gzip"), *given_headers]
    if not any(header == "Content-Type" for header, _ in given_headers):
        given_headers = [("Content-Type", kind), *given_headers]
    target = f"/files?path={quoted(f'{place}/up/{name}')}"
    check(agent, request("POST", target, given_headers, body, max(0, len(body) + lie)))


@given(pieces=st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=10)), max_size=12), chunked=st.booleans())
@FUZZ
def test_multipart_bodies(agent: Agent, place: str, pieces: list[bytes], chunked: bool) -> None:
    """Any order of a multipart body's building blocks is written or refused."""
    # Only paths inside the test's directory are named, so a part without one is refused.
    pieces = [piece.replace(b"PLACE", f"{place}/up".encode()) for piece in pieces]
    given_headers = [("Content-Type", b"multipart/form-data; boundary=B")]
    body = b"".join(pieces)
    if chunked:
        given_headers.append(("Transfer-Encoding", b"chunked"))
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"
    check(agent, request("POST", "/files", given_headers, body, len(body)))


@given(
    procedure=st.sampled_from([*HARMLESS, *PROCESS]), message=messages, given_headers=headers, cut=st.integers(0, 400)
)
@FUZZ
def test_unary_calls(
    agent: Agent, procedure: str, message: dict[str, Any], given_headers: list[tuple[str, bytes]], cut: int
) -> None:
    """Any message, whole or half, is answered or refused with a code."""
    body = json.dumps(message).encode()
    body = body[:cut] if cut < 200 else body
    given_headers = [("Content-Type", b"application/json"), *given_headers]
    check(agent, request("POST", f"/{procedure}", given_headers, body, len(body)))


@given(
    procedure=st.sampled_from(STREAMS),
    message=messages,
    given_headers=headers,
    flags=st.sampled_from([0, 0, 0, 1, 2, 0x80]),
    lie=st.sampled_from([0, 0, 0, 1, -1, 2**31]),
    repeat=st.integers(0, 3),
    tail=st.binary(max_size=6),
)
@FUZZ
def test_stream_calls(
    agent: Agent,
    procedure: str,
    message: dict[str, Any],
    given_headers: list[tuple[str, bytes]],
    flags: int,
    lie: int,
    repeat: int,
    tail: bytes,
) -> None:
    """Any envelopes, with lengths that may be lies, end in a trailer, a refusal or a closed connection."""
    payload = json.dumps(message).encode()
    envelope = bytes((flags,)) + max(0, len(payload) + lie).to_bytes(4, "big") + payload
    body = envelope * repeat + tail
    given_headers = [("Content-Type", b"application/connect+json"), ("Connect-Timeout-Ms", b"50"), *given_headers]
    check(agent, request("POST", f"/{procedure}", given_headers, body, len(body)))


@given(raw=st.one_of(st.binary(max_size=400), st.lists(st.sampled_from(HEAD_PARTS), max_size=14).map(b"".join)))
@FUZZ
def test_heads(agent: Agent, raw: bytes) -> None:
    """Any bytes at all are answered or hung up on."""
    check(agent, raw)


def _deep_path(place: str) -> bytes:
    return request("GET", f"/files?path={place}/{'a/' * 10_000}x", [], b"", None)


def _half_json(place: str) -> bytes:
    return request("POST", "/filesystem.Filesystem/Stat", [("Content-Type", b"application/json")], b'{"path":"', 9)


def _deep_json(place: str) -> bytes:
    body = b'{"path":' * 20_000
    return request("POST", "/filesystem.Filesystem/Stat", [("Content-Type", b"application/json")], body, len(body))


def _huge_number(place: str) -> bytes:
    body = b'{"path":"/","depth":' + b"9" * 10_000 + b"}"
    return request("POST", "/filesystem.Filesystem/ListDir", [("Content-Type", b"application/json")], body, len(body))


def _megabyte_of_headers(place: str) -> bytes:
    return b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: %b\r\n" % (n, b"v" * 1000) for n in range(1000)) + b"\r\n"


def _one_long_header(place: str) -> bytes:
    return b"GET /health HTTP/1.1\r\nX: " + b"v" * (1 << 20) + b"\r\n\r\n"


def _nul_in_path(place: str) -> bytes:
    return request("GET", "/files?path=/etc%00/passwd", [], b"", None)


def _loop(place: str) -> bytes:
    return request("GET", f"/files?path={place}/loop", [], b"", None)


def _bomb_cut_off(place: str) -> bytes:
    body = gzip.compress(bytes(1 << 20))[:-9]
    kind = [("Content-Type", b"application/octet-stream"), ("Content-Encoding", b"gzip")]
    return request("POST", f"/files?path={place}/bomb", kind, body, len(body))


def _lying_length(place: str) -> bytes:
    return request("POST", f"/files?path={place}/x", [("Content-Type", b"application/octet-stream")], b"short", 500)


CASES: list[tuple[Callable[[str], bytes], int]] = [
    (_deep_path, 400),
    (_half_json, 400),
    (_deep_json, 400),
    (_huge_number, 400),
    (_megabyte_of_headers, 431),
    (_one_long_header, 431),
    (_nul_in_path, 400),
    (_loop, 400),
    (_bomb_cut_off, 400),
    (_lying_length, 400),
]


@pytest.mark.parametrize(("case", "status"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_cases_that_were_thought_of_or_found(
    agent: Agent, place: str, case: Callable[[str], bytes], status: int
) -> None:
    """Each has the status that clients map to the right exception."""
    raw = case(place)
    check(agent, raw)
    answer = send(agent, raw)
    assert not answer or answer.split(b" ")[1] == str(status).encode()
