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

FILES_COUNT = 1 << 17
"""Two for each connection of more than a hundred sandboxes."""


async def run(link: socket.socket, closed: list[str], name_servers: list[str]) -> None:
    await NameFilterProcess(
        link,
        closed=tuple(IPv4Network(network) for network in closed),
        resolver=Resolver(name_servers),
        clock=SystemClock(),
    ).run()


def raise_file_limit() -> None:
    """So that one sandbox with all its connections leaves descriptors for the others."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, FILES_COUNT), max(hard, FILES_COUNT)))
    except (ValueError, OSError):
        # Root of a container may raise it no further than its host did.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Arguments: the instance, for who reads the list of processes; the socket; the settings."""
    _, _, descriptor, settings = sys.argv
    log.configure("info", "name_filter")
    raise_file_limit()
    asked = json.loads(settings)
    link = socket.socket(fileno=int(descriptor))
    link.setblocking(False)
    become(asked["user_id"])
    asyncio.run(run(link, asked["closed"], asked["name_servers"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
