"""Which request goes where, and who may ask: every request passes `Routes.serve` and nothing else."""

import asyncio
import os

from firebrick_guest.auth import check_control, check_file_access, check_token
from firebrick_guest.compose import compose
from firebrick_guest.connect import (
    ClientStreamHandler,
    StreamHandler,
    UnaryHandler,
    answer_error,
    serve_client_stream,
    serve_stream,
    serve_unary,
)
from firebrick_guest.disk import DiskRoutes
from firebrick_guest.errors import ConnectError, HttpError
from firebrick_guest.files import FileRoutes
from firebrick_guest.filesystem_rpc import FilesystemService
from firebrick_guest.forward import forward_port
from firebrick_guest.http import Exchange
from firebrick_guest.init import InitRoute
from firebrick_guest.limits import LimitWatch
from firebrick_guest.logs import EventLog
from firebrick_guest.metrics import Metrics
from firebrick_guest.process_rpc import ProcessService
from firebrick_guest.quiet import HOLD_S, Quiet
from firebrick_guest.renew import RenewRoute
from firebrick_guest.settings import Settings
from firebrick_guest.watch_rpc import WatchService
from firebrick_guest.watching import Watches

MAX_LOG_COUNT = 1000
MAX_HOLD_S = 3600
PORT_PREFIX = "/firebrick/port/"


class Routes:
    def __init__(self, settings: Settings, processes: ProcessService, log: EventLog, limits: LimitWatch) -> None:
        self._settings = settings
        self._log = log
        self._limits = limits
        self._metrics = Metrics(limits)
        self._watches = watches = Watches(settings.accounts)
        self._files = FileRoutes(settings, watches)
        self._init = InitRoute(settings, log)
        filesystem = FilesystemService(settings, watches)
        watching = WatchService(settings, watches)
        self.unary: dict[str, UnaryHandler] = {
            "/process.Process/List": processes.list,
            "/process.Process/Update": processes.update,
            "/process.Process/SendInput": processes.send_input,
            "/process.Process/SendSignal": processes.send_signal,
            "/process.Process/CloseStdin": processes.close_stdin,
            "/filesystem.Filesystem/Stat": filesystem.stat,
            "/filesystem.Filesystem/MakeDir": filesystem.make_dir,
            "/filesystem.Filesystem/Move": filesystem.move,
            "/filesystem.Filesystem/ListDir": filesystem.list_dir,
            "/filesystem.Filesystem/Remove": filesystem.remove,
            "/filesystem.Filesystem/CreateWatcher": watching.create,
            "/filesystem.Filesystem/GetWatcherEvents": watching.get_events,
            "/filesystem.Filesystem/RemoveWatcher": watching.remove,
        }
        self.streams: dict[str, StreamHandler] = {
            "/process.Process/Start": processes.start,
            "/process.Process/Connect": processes.connect,
            "/filesystem.Filesystem/WatchDir": watching.watch,
        }
        self.client_streams: dict[str, ClientStreamHandler] = {"/process.Process/StreamInput": processes.stream_input}
        self._quiet = Quiet()
        self._disk = DiskRoutes(self._quiet)
        self._renew = RenewRoute(settings, self._quiet, log)
        self.control = {
            ("POST", "/init"), ("GET", "/firebrick/logs"), ("POST", "/firebrick/go-on"),
            ("POST", "/firebrick/flush"), ("GET", "/firebrick/disk"), ("PUT", "/firebrick/disk"),
            ("POST", "/firebrick/hold"), ("POST", "/firebrick/renew"),
        }  # fmt: skip
        self.plain = {("GET", "/metrics"), ("GET", "/envs"), ("GET", "/files"), ("POST", "/files")}

    async def serve(self, exchange: Exchange) -> None:
        method, path = exchange.head.method, exchange.head.path
        try:
            if path == "/health":
                self._require(exchange, "GET", "HEAD")
                exchange.answer(204, "Cache-Control: no-store\r\n")
            elif (method, path) in self.control:
                check_control(exchange.head, self._settings.control_token)
                await self._serve_control(exchange)
            elif path.startswith(PORT_PREFIX) and self._settings.is_ready:
                # No credential: whoever gets here reaches every port of the machine's address as well, and only the
                # host does. What the sandbox's owner wants of visitors is the edge's to ask.
                self._require(exchange, "GET")
                await forward_port(exchange, path.removeprefix(PORT_PREFIX), exchange.local_port)
            else:
                await self._serve_client(exchange)
        except HttpError as exc:
            if exc.status == 507:
                self._limits.hit("disk")
            raise
        except ConnectionError:
            # The client has gone.
            raise
        except Exception as exc:
            self._log.add("error", "a request failed", route=path[:100], reason=repr(exc))
            raise HttpError(500, "the guest agent failed to handle the request", close=True) from exc

    async def _serve_control(self, exchange: Exchange) -> None:
        method, path = exchange.head.method, exchange.head.path
        if path == "/init":
            await self._init.serve(exchange)
            self._quiet.go_on()
        elif path == "/firebrick/go-on":
            self._quiet.go_on()
            exchange.answer(204)
        elif path == "/firebrick/flush":
            await asyncio.get_running_loop().run_in_executor(None, os.sync)
            exchange.answer(204)
        elif path == "/firebrick/hold":
            await self._hold(exchange)
        elif path == "/firebrick/renew":
            await self._renew.serve(exchange)
        elif path == "/firebrick/disk":
            await (self._disk.export(exchange) if method == "GET" else self._disk.take(exchange))
        else:
            since, limit = _count(exchange, "since", 0), _count(exchange, "limit", MAX_LOG_COUNT)
            exchange.answer_json(200, self._log.read(since, min(limit, MAX_LOG_COUNT)))

    async def _hold(self, exchange: Exchange) -> None:
        """Stop everything else, then bring what was written to the disk: afterwards nothing is written any more. The
        time counts from the answer."""
        for_s = _count(exchange, "for", int(HOLD_S))
        self._quiet.stop()
        try:
            await asyncio.get_running_loop().run_in_executor(None, os.sync)
        except BaseException:
            self._quiet.go_on()
            raise
        self._quiet.hold(min(for_s, MAX_HOLD_S))
        exchange.answer(204)

    async def _serve_client(self, exchange: Exchange) -> None:
        head = exchange.head
        is_file = head.path == "/files"
        is_rpc = head.path.startswith(("/process.Process/", "/filesystem.Filesystem/"))
        if not self._settings.is_ready:
            message = "the sandbox is not ready yet: the guest agent has not been given its settings"
            if not is_rpc:
                raise HttpError(503, message)
            answer_error(exchange, ConnectError("unavailable", message))
        elif is_file:
            self._require(exchange, "GET", "POST")
            operation = "read" if head.method == "GET" else "write"
            check_file_access(head, self._settings.access_token, operation)
            await (self._files.download(exchange) if operation == "read" else self._files.upload(exchange))
        else:
            check_token(head, self._settings.access_token)
            await (self._serve_rpc(exchange) if is_rpc else self._serve_plain(exchange))

    async def _serve_rpc(self, exchange: Exchange) -> None:
        self._require(exchange, "POST")
        path = exchange.head.path
        if unary := self.unary.get(path):
            await serve_unary(exchange, unary)
        elif stream := self.streams.get(path):
            await serve_stream(exchange, stream)
        elif client_stream := self.client_streams.get(path):
            await serve_client_stream(exchange, client_stream)
        else:
            answer_error(exchange, ConnectError("unimplemented", f"unknown procedure {path}"))

    async def _serve_plain(self, exchange: Exchange) -> None:
        path = exchange.head.path
        if path == "/files/compose":
            self._require(exchange, "POST")
            await compose(exchange, self._settings, self._watches)
            return
        if path not in ("/metrics", "/envs"):
            raise HttpError(404, "no such route")
        self._require(exchange, "GET")
        exchange.answer_json(200, self._metrics.read() if path == "/metrics" else self._settings.global_env())

    def _require(self, exchange: Exchange, *methods: str) -> None:
        if exchange.head.method not in methods:
            raise HttpError(405, f"method not allowed; use {' or '.join(methods)}")


def _count(exchange: Exchange, name: str, default: int) -> int:
    given = exchange.head.argument(name)
    if given is None:
        return default
    if not given.isascii() or not given.isdigit() or len(given) > 15:
        raise HttpError(400, f"{name} must be a whole number")
    return int(given)
