"""Ports that a guest's programs open on loopback only: forwarded as raw bytes, both ways, to the end."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.contract.guest.agent import Agent
from tests.support.wait import wait_for_sync

SIZE_BYTES = 3_000_000


@contextmanager
def server(family: socket.AddressFamily, address: str) -> Iterator[socket.socket]:
    with socket.create_server((address, 0), family=family) as listening:
        listening.settimeout(20)
        yield listening


@contextmanager
def forwarded(agent: Agent, port: int, early: bytes = b"") -> Iterator[socket.socket]:
    """A connection through the agent, after its 101."""
    with socket.create_connection(("127.0.0.1", agent.port), timeout=20) as connection:
        head = f"GET /firebrick/port/{port} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: firebrick-tcp\r\n\r\n"
        connection.sendall(head.encode() + early)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += connection.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        yield connection


def read_all(connection: socket.socket) -> bytes:
    pieces = bytearray()
    while piece := connection.recv(65536):
        pieces += piece
    return bytes(pieces)


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_loopback_port_is_reached(agent: Agent, family: socket.AddressFamily, address: str) -> None:
    """Bytes pass both ways, those sent with the request too, and each direction ends by itself."""
    with server(family, address) as listening, forwarded(agent, listening.getsockname()[1], b"early ") as client:
        inner, _ = listening.accept()
        with inner:
            client.sendall(b"and late")
            client.shutdown(socket.SHUT_WR)
            assert read_all(inner) == b"early and late"
            sender = threading.Thread(target=lambda: (inner.sendall(b"x" * SIZE_BYTES), inner.close()))
            sender.start()
            assert len(read_all(client)) == SIZE_BYTES
            sender.join()


def test_an_end_is_passed_on(agent: Agent) -> None:
    """Whichever side goes away, the other is closed and the agent keeps nothing."""
    before = agent.socket_count
    with server(socket.AF_INET, "127.0.0.1") as listening:
        port = listening.getsockname()[1]
        with forwarded(agent, port):
            inner, _ = listening.accept()
        with inner:
            assert inner.recv(1) == b""
        with forwarded(agent, port) as client:
            listening.accept()[0].close()
            assert client.recv(1) == b""
    wait_for_sync(lambda: agent.socket_count <= before)


def test_a_slow_reader_costs_no_memory(agent: Agent) -> None:
    """What one side does not read, the other cannot send."""
    before = agent.rss_kib
    with server(socket.AF_INET, "127.0.0.1") as listening, forwarded(agent, listening.getsockname()[1]):
        inner, _ = listening.accept()
        with inner:
            inner.settimeout(0.3)
            with pytest.raises(TimeoutError):
                inner.sendall(b"x" * 100_000_000)
        assert agent.rss_kib - before < 10_000


def test_what_cannot_be_forwarded(agent: Agent, closed_agent: Agent) -> None:
    """Nothing listens: 502. No upgrade: 426. No port, or the agent's own: 400. Before /init: 503."""
    with server(socket.AF_INET, "127.0.0.1") as listening:
        unused = listening.getsockname()[1]
    upgrade = {"Connection": "Upgrade", "Upgrade": "firebrick-tcp"}
    answer = agent.http.get(f"/firebrick/port/{unused}", headers=upgrade)
    assert answer.status_code == 502
    assert answer.json() == {"code": 502, "message": f"nothing listens on port {unused} of this sandbox's loopback"}
    assert agent.http.get(f"/firebrick/port/{unused}").status_code == 426
    for wrong in ("0", "65536", "x", "", "80/x", str(agent.port)):
        assert agent.http.get(f"/firebrick/port/{wrong}", headers=upgrade).status_code == 400
    assert closed_agent.http.get(f"/firebrick/port/{unused}", headers=upgrade).status_code == 503
