"""The edge as a whole: listens, owns the connections' tasks, follows the catalog, ends in order."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from firebrick.catalog.base import CatalogReader
from firebrick.clock import Clock
from firebrick.edge.client import ClientLink
from firebrick.edge.router import Router
from firebrick.edge.stats import Stats
from firebrick.edge.tls import TlsEntry
from firebrick.edge.upstream import Sandboxes
from firebrick.edge.visit import EdgeLimits, Shared
from firebrick.edge.wakes import Wakes
from firebrick.log import get_log

BACKLOG_COUNT = 4096
SWEEP_S = 1.0
GRACE_S = 5.0
HANDSHAKE_TIMEOUT_S = 10.0

log = get_log("edge")


class Edge:
    """`serve`, then `close`. Holds no truth: the catalog says where sandboxes are.

    Args:
        domain: what follows `<port>-<id>.` in a sandbox's host name; a port in it is ignored.
        api: address and port of the control plane's API, which is served as `api.<domain>`; None: it is not.
    """

    def __init__(
        self,
        *,
        domain: str,
        catalog: CatalogReader,
        clock: Clock,
        limits: EdgeLimits | None = None,
        api: tuple[str, int] | None = None,
    ) -> None:
        limits = limits or EdgeLimits()
        self.stats = Stats()
        self.stop_wanted = asyncio.Event()
        """For the owner of the process: set it on SIGTERM; set too when a task of the edge failed, so that the
        process ends and is started anew rather than living on deaf."""
        self._catalog = catalog
        self._clock = clock
        self._sandboxes = Sandboxes(clock, connect_timeout_s=limits.connect_timeout_s)
        self._shared = Shared(
            router=Router(domain, catalog, self.stats, api),
            sandboxes=self._sandboxes,
            wakes=Wakes(catalog, self._spawn, per_sandbox_count=limits.per_sandbox_count),
            stats=self.stats,
            limits=limits,
            clock=clock,
            clients=set(),
            spawn=self._spawn,
        )
        self._servers: list[asyncio.Server] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._root: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    async def serve(self, host: str, port: int) -> int:
        """Listen for plain HTTP/1.1; return the port (asked for as 0: any free one) once connections are accepted.

        Raises: OSError — the address can't be listened on.
        """
        await self._start()
        return await self._listen(host, port, lambda: ClientLink(self._shared))

    async def serve_tls(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listen for HTTP/2 and HTTP/1.1 in TLS, beside `serve` or alone; `context` as `server_context` makes it.

        Raises: OSError — the address can't be listened on.
        """
        await self._start()
        return await self._listen(
            host, port, lambda: TlsEntry(self._shared), ssl=context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
        )

    async def _start(self) -> None:
        if self._root is not None:
            return
        started = asyncio.Event()
        self._root = asyncio.create_task(self._run(started), name="edge")
        self._root.add_done_callback(lambda _: self.stop_wanted.set())
        await started.wait()

    async def _listen(self, host: str, port: int, factory: Callable[[], asyncio.Protocol], **tls: Any) -> int:
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(factory, host, port, backlog=BACKLOG_COUNT, **tls)
        except OSError:
            await self.close(grace_s=0)
            raise
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        log.info("edge.listening", host=host, port=bound, tls=bool(tls))
        return bound

    async def close(self, grace_s: float = GRACE_S) -> None:
        """Stop accepting, close idle connections, let requests finish for `grace_s`, cut the rest. Idempotent.

        Raises: ExceptionGroup — a task of the edge had failed.
        """
        self._shared.is_closing = True
        for server in self._servers:
            server.close()
        for client in list(self._shared.clients):
            if client.is_idle:
                client.close()
        deadline_s = self._clock.monotonic_s() + grace_s
        while self._shared.clients and self._clock.monotonic_s() < deadline_s:
            await self._clock.sleep(0.02)
        self._sandboxes.cut_all()
        for client in list(self._shared.clients):
            client.reset()
        self._stopped.set()
        root, self._root = self._root, None
        if root is not None:
            await root
        while self._servers:
            await self._servers.pop().wait_closed()

    async def _run(self, started: asyncio.Event) -> None:
        """The root of every task of the edge."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            children = [tasks.create_task(self._follow()), tasks.create_task(self._sweep())]
            started.set()
            await self._stopped.wait()
            for child in children:
                child.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._tasks is not None, "connections are accepted only after the root task has started"
        return self._tasks.create_task(work)

    async def _follow(self) -> None:
        """Cut what is withdrawn; to ask for the next change is to confirm this one."""
        async for change in self._catalog.changes():
            self._sandboxes.follow(change)
            # One turn of the loop: aborted connections are closed in it, and only then may we confirm.
            await asyncio.sleep(0)

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(SWEEP_S)
            now_s = self._clock.monotonic_s()
            for client in list(self._shared.clients):
                if client.deadline_s is not None and client.deadline_s < now_s:
                    client.expire()
            self._sandboxes.sweep()
