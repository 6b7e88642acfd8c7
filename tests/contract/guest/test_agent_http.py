"""What the agent's HTTP server makes of hostile bytes."""

import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.guest.agent import ACCESS_TOKEN, Agent
from tests.support.wait import wait_for_sync

TOKEN = f"X-Access-Token: {ACCESS_TOKEN}\r\n".encode()
LIST = b"POST /process.Process/List HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n" + TOKEN


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"GET /health HTTP/1.1\r\nA b: c\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nA: " + b"x" * 70_000, 431),
        (b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n", 431),
        (LIST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (LIST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        (LIST + b"Transfer-Encoding: gzip\r\n\r\n{}", 501),
        (LIST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (LIST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx", 400),
        (LIST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 400, 400),
    ],
)
def test_malformed_requests_are_refused_and_the_connection_closed(
    agent: Agent, request_bytes: bytes, status: int
) -> None:
    """Broken framing gets its status, a JSON body and a closed connection; the agent lives on."""
    answer = agent.raw(request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"Content-Length:") == answer.count(b"Connection: close") == 1
    assert b'"code":%d' % status in answer
    assert agent.http.get("/health").status_code == 204


@given(st.binary(max_size=200))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_leave_the_agent_alive(running_agent: Agent, raw: bytes) -> None:
    """Whatever is sent, the agent answers or closes, and serves the next client."""
    with socket.create_connection(("127.0.0.1", running_agent.port), timeout=20) as connection:
        connection.sendall(raw + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert running_agent.http.get("/health").status_code == 204


def test_requests_may_be_pipelined_and_cut_anywhere(agent: Agent) -> None:
    """Two requests in one packet, or one in many, are answered in order on one connection."""
    one = LIST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    closing = b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
    assert agent.raw(one + one + closing).count(b"HTTP/1.1 200") == 2
    with socket.create_connection(("127.0.0.1", agent.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in one + closing:
            connection.sendall(bytes([byte]))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.count(b"HTTP/1.1 204") == 1


def test_http_1_0_gets_an_answer_without_chunks(agent: Agent) -> None:
    """An old client is answered and the connection closed."""
    assert agent.raw(b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 204")
    answer = agent.raw(b"GET /files?path=/usr/bin/python3 HTTP/1.0\r\n" + TOKEN + b"\r\n")
    assert b"chunked" not in answer.partition(b"\r\n\r\n")[0]


def test_a_client_that_expects_is_told_to_continue(agent: Agent) -> None:
    """`Expect: 100-continue` is answered before the body is sent."""
    with socket.create_connection(("127.0.0.1", agent.port), timeout=20) as connection:
        connection.sendall(LIST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_an_early_refusal_reaches_a_client_that_still_sends(agent: Agent) -> None:
    """A large body to a route that refuses it is read and dropped, and the answer arrives."""
    body = b"x" * 4_000_000
    head = b"POST /files HTTP/1.1\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n"
    answer = agent.raw(head + TOKEN + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("DELETE", "/files", 405), ("GET", "/process.Process/List", 405), ("GET", "/x", 404), ("GET", "/init", 404)],
)
def test_unknown_routes_and_methods(agent: Agent, method: str, path: str, status: int) -> None:
    """What is not there is 404 or 405, with a body in E2B's shape."""
    answer = agent.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, status)


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({"Content-Type": "application/json"}, b"{", "invalid_argument"),
        ({"Content-Type": "application/json"}, b"[]", "invalid_argument"),
        ({"Content-Type": "application/json"}, b"\xff\xfe", "invalid_argument"),
        ({"Content-Type": "application/json"}, b"[" * 100_000, "invalid_argument"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"{}", "unimplemented"),
        ({"Content-Type": "application/json", "Connect-Timeout-Ms": "-1"}, b"{}", "invalid_argument"),
        ({"Content-Type": "application/json", "Connect-Timeout-Ms": "1" * 20}, b"{}", "invalid_argument"),
        ({"Content-Type": "application/json"}, b" " * 17_000_000, "resource_exhausted"),
    ],
)
def test_bad_unary_calls(agent: Agent, headers: dict[str, str], body: bytes, code: str) -> None:
    """A unary call that makes no sense is a Connect error with the code for it."""
    answer = agent.request("POST", "/process.Process/List", content=body, headers=headers)
    assert answer.json()["code"] == code


@pytest.mark.parametrize("kind", ["application/proto", "application/grpc", "application/connect+json", "text/plain"])
def test_other_codecs_are_refused(agent: Agent, kind: str) -> None:
    """Only JSON is spoken: everything else is 415."""
    answer = agent.request("POST", "/process.Process/List", content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_argument"),
        (b"\0\0", "invalid_argument"),
        (b"\0\0\0\0\x05{}", "invalid_argument"),
        (b"\x01\0\0\0\x02{}", "internal"),
        (b"\x02\0\0\0\x02{}", "invalid_argument"),
        (b"\0\xff\xff\xff\xff", "resource_exhausted"),
        (b"\0\0\0\0\x02{}\0\0\0\0\x02{}", "invalid_argument"),
        (b"\0\0\0\0\0" * 100_000, "invalid_argument"),
    ],
)
def test_bad_streams(agent: Agent, body: bytes, code: str) -> None:
    """A broken envelope ends the stream with an error inside a 200, as Connect wants it."""
    answer = agent.frames("process.Process/Start", body)
    assert answer.status_code == 200
    assert answer.content[0] == 2
    assert f'"code":"{code}"'.encode() in answer.content


def test_an_unknown_procedure_is_unimplemented(agent: Agent) -> None:
    """A procedure we do not have is told so in Connect's way."""
    answer = agent.unary("process.Process/Nothing", {})
    assert (answer.status_code, answer.json()["code"]) == (501, "unimplemented")


def test_many_idle_connections_cost_little(agent: Agent) -> None:
    """A few hundred clients that send half a head are held at once, and forgotten when they go."""
    connections = []
    try:
        for _ in range(300):
            connection = socket.create_connection(("127.0.0.1", agent.port), timeout=20)
            connection.sendall(b"GET /hea")
            connections.append(connection)
        assert agent.http.get("/health").status_code == 204
    finally:
        for connection in connections:
            connection.close()
    wait_for_sync(lambda: agent.socket_count < 100)
