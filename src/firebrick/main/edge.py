"""Process entry: the edge of one machine, following the control plane's catalog over its socket."""

import asyncio
import resource
import signal
import socket
import sys
from dataclasses import replace

import uvloop

from firebrick import log
from firebrick.catalog.follower import CatalogFollower
from firebrick.clock import SystemClock
from firebrick.config import Config, load_config
from firebrick.edge.server import Edge
from firebrick.edge.tls import server_context
from firebrick.edge.visit import EdgeLimits
from firebrick.model.errors import Invalid
from firebrick.supervisor.certificates import ensure_certificates
from firebrick.supervisor.roles import reachable_host

RESERVED_FILES_COUNT = 256
"""Descriptors kept for everything that is not a connection."""
MOST_FILES_COUNT = 1_048_576
"""Asked for where the hard limit is 'unlimited'."""


def raise_file_limit() -> int:
    """Take as many descriptors as we may have; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES_COUNT if hard == resource.RLIM_INFINITY else hard
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def run(config: Config, limits: EdgeLimits) -> None:
    """Serve until SIGTERM or SIGINT, then end in order."""
    clock = SystemClock()
    catalog = CatalogFollower(config.catalog_socket, clock, patience=config.patience)
    api = (reachable_host(config.host), config.api_port)
    edge = Edge(domain=config.sandbox_domain, catalog=catalog, clock=clock, limits=limits, api=api)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, edge.stop_wanted.set)
    catalog.start()
    try:
        await edge.serve(config.host, config.edge_port)
        if config.tls_port:
            files = ensure_certificates(config, clock)
            context = server_context(files.certificate, files.key)
            await edge.serve_tls(config.host, config.tls_port, context)
            if config.host == "127.0.0.1" and has_ipv6_loopback():
                # Resolvers give *.localhost both addresses, and some clients try one only.
                await edge.serve_tls("::1", config.tls_port, context)
        await edge.stop_wanted.wait()
        await edge.close()
    finally:
        await catalog.close()


def main() -> int:
    config = load_config()
    log.configure(config.log_level, "edge")
    # Each client connection may need one more, into a sandbox.
    total_count = max(16, (raise_file_limit() - RESERVED_FILES_COUNT) // 2)
    limits = replace(
        EdgeLimits(),
        total_count=min(EdgeLimits().total_count, total_count),
        connect_timeout_s=config.patient_s(EdgeLimits().connect_timeout_s),
    )
    try:
        uvloop.run(run(config, limits))
    except OSError as exc:
        log.get_log("main").error(
            "edge.refused", host=config.host, port=config.edge_port, tls_port=config.tls_port, reason=exc.strerror
        )
        return 1
    except Invalid as exc:
        log.get_log("main").error("edge.refused", message=exc.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
