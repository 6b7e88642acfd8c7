"""What tests of rules by name need: a name server on a socket that may live in another namespace, and hellos."""

import asyncio
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


@dataclass(slots=True)
class NameServer:
    """Answers from `names` ({name: addresses}) and keeps what it was asked."""

    names: Mapping[str, list[str]]
    asked: list[str] = field(default_factory=list)

    def answer(self, query: bytes) -> bytes:
        asked = dns.message.from_wire(query)
        response = dns.message.make_response(asked)
        response.flags |= dns.flags.AA | dns.flags.RA
        question = asked.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked.append(name)
        if name not in self.names:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text_list(question.name, 0, "IN", "A", self.names[name]))
        return response.to_wire()


@contextmanager
def answering(listener: socket.socket, names: Mapping[str, list[str]]) -> Iterator[NameServer]:
    """Answer on this datagram socket, in the running loop, while the block runs."""
    server = NameServer(names)
    loop = asyncio.get_running_loop()

    def hear() -> None:
        query, peer = listener.recvfrom(4096)
        listener.sendto(server.answer(query), peer)

    loop.add_reader(listener, hear)
    try:
        yield server
    finally:
        loop.remove_reader(listener)


def client_hello(name: str | None) -> bytes:
    """What OpenSSL sends first when it wants `name`."""
    context: Any = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def filters(instance: str) -> list[int]:
    """The processes that are name filters of this instance."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if b"firebrick.main.name_filter" in argv and instance.encode() in argv:
            found.append(int(entry.name))
    return found
