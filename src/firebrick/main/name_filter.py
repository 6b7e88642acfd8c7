"""Process entry: the name filter, started by the node agent with one end of a socket and what to know as JSON."""

import asyncio
import json
import resource
import socket
import sys
from ipaddress import IPv4Network

from firebrick import log
from firebrick.clock import SystemClock
from firebrick.linux.unprivileged import become
from firebrick.network.name_filter.process import NameFilterProcess
from firebrick.network.name_filter.resolver import Resolver


async def run(link: socket.socket, closed: list[str], name_servers: list[str]) -> None:
    await NameFilterProcess(
        link,
        closed=tuple(IPv4Network(network) for network in closed),
        resolver=Resolver(name_servers),
        clock=SystemClock(),
    ).run()


def main() -> int:
    """Arguments: the instance, for who reads the list of processes; the socket; the settings."""
    _, _, descriptor, settings = sys.argv
    log.configure("info", "name_filter")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asked = json.loads(settings)
    link = socket.socket(fileno=int(descriptor))
    link.setblocking(False)
    become(asked["user_id"])
    asyncio.run(run(link, asked["closed"], asked["name_servers"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
