"""The service process.Process: start, follow, feed, signal and list commands."""

import asyncio
import errno
import os
import resource
import signal
import termios
import time
from collections.abc import Callable
from typing import TypeVar

from firebrick_guest.auth import username
from firebrick_guest.connect import (
    Message,
    MessageReader,
    ServerStream,
    frame,
    keepalive_s,
    timeout_s,
)
from firebrick_guest.errors import ConnectError
from firebrick_guest.http import Exchange
from firebrick_guest.json_text import as_text, binary, dump_json, flag, number, submessage, text, text_list, text_map
from firebrick_guest.launch import Launch, start_with_pipes, start_with_terminal
from firebrick_guest.limits import LimitWatch, process_count, process_soft_limit
from firebrick_guest.logs import EventLog
from firebrick_guest.output import StreamBudget, data_frames
from firebrick_guest.process import Process
from firebrick_guest.reaper import Reaper
from firebrick_guest.ring import Ring, RingPool
from firebrick_guest.settings import Settings
from firebrick_guest.users import resolve_path

SIGNALS = {"SIGNAL_SIGTERM": 15, "SIGNAL_SIGKILL": 9, "15": 15, "9": 9}
# An ended command is remembered this long, so that a client that was away learns how it ended and what it said.
RETAIN_S = 300.0
RETAIN_COUNT = 2000
# A killed process is gone when the answer comes, unless the kernel cannot end it that fast.
KILL_WAIT_S = 2.0
SINCE_HEADER = "firebrick-since"
# Under load output goes out at most this often; the first piece after a silence at once.
FLUSH_S = 0.003
# The processes of the sandbox are counted at most this often: commands may come by the hundred a second.
COUNT_S = 0.05
KEEPALIVE_FRAME = frame(b'{"event":{"keepalive":{}}}')


Started = TypeVar("Started")


class ProcessService:
    """Owns every command that was started, and those that ended lately."""

    def __init__(
        self, settings: Settings, reaper: Reaper, log: EventLog, limits: LimitWatch, open_files_count: int
    ) -> None:
        self._settings = settings
        self._reaper = reaper
        self._limits = limits
        self._open_files_count = open_files_count
        self._process_limit = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, Process] = {}
        # In the order of their ends, with the time when each is forgotten.
        self._ended: dict[int, tuple[float, Process]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._process_count = 0
        self._counted_at = -COUNT_S
        self._rings = RingPool()
        self._budget = StreamBudget()

    # RPCs

    async def start(self, stream: ServerStream, request: Message) -> None:
        timeout = timeout_s(stream.exchange)
        since = _since(stream.exchange)
        process = self._start(stream.exchange, request)
        if timeout:
            process.expire_after(timeout)
        await self._follow(process, stream, since)

    async def connect(self, stream: ServerStream, request: Message) -> None:
        timeout = timeout_s(stream.exchange)
        since = _since(stream.exchange)
        process = self._select(request, also_ended=True)
        if since is not None and since > process.ring.end_seq:
            raise ConnectError("out_of_range", f"the process has printed {process.ring.end_seq} bytes so far")
        try:
            async with asyncio.timeout(timeout or None):
                await self._follow(process, stream, since)
        except TimeoutError as exc:
            raise ConnectError("deadline_exceeded", "the stream's timeout has passed") from exc

    async def list(self, exchange: Exchange, request: Message) -> Message:
        return {"processes": [process.info for process in self._running.values()]}

    async def update(self, exchange: Exchange, request: Message) -> Message:
        process = self._select(request)
        pty = submessage(request, "pty")
        if pty is not None:
            process.resize(*_size(pty))
        return {}

    async def send_input(self, exchange: Exchange, request: Message) -> Message:
        await _feed(self._select(request), submessage(request, "input") or {})
        return {}

    async def stream_input(self, exchange: Exchange, reader: MessageReader) -> Message:
        first = await reader.next() or {}
        start = submessage(first, "start")
        if start is None:
            raise ConnectError("invalid_argument", "the first message must be 'start'")
        process = self._select(start)
        while message := await reader.next():
            data = submessage(message, "data")
            if data is not None:
                await _feed(process, submessage(data, "input") or {})
            elif "keepalive" not in message:
                raise ConnectError("invalid_argument", "a message must be 'data' or 'keepalive'")
        return {}

    async def send_signal(self, exchange: Exchange, request: Message) -> Message:
        process = self._select(request)
        wanted = SIGNALS.get(str(request.get("signal")))
        if wanted is None:
            raise ConnectError("invalid_argument", "signal must be SIGNAL_SIGTERM or SIGNAL_SIGKILL")
        process.send_signal(wanted)
        if wanted == signal.SIGKILL:
            await process.gone(KILL_WAIT_S)
        return {}

    async def close_stdin(self, exchange: Exchange, request: Message) -> Message:
        self._select(request).close_stdin()
        return {}

    # inside

    def _start(self, exchange: Exchange, request: Message) -> Process:
        settings = self._settings
        config = submessage(request, "process") or {}
        user = settings.user(username(exchange.head))
        env = settings.env_of(user, settings.checked_env(text_map(config, "envs")))
        argv = [text(config, "cmd"), *text_list(config, "args")]
        if not argv[0]:
            raise ConnectError("invalid_argument", "process.cmd is empty")
        cwd = resolve_path(text(config, "cwd"), user, settings.workdir_of(user))
        if not os.path.isdir(cwd):
            raise ConnectError("invalid_argument", f"cwd '{cwd}' does not exist")
        info: Message = {"config": {"cmd": argv[0], **_given(config, "args", "envs", "cwd")}, "pid": 0}
        if request.get("tag") is not None:
            info["tag"] = text(request, "tag")
        pty = submessage(request, "pty")
        launch = Launch(argv, env, cwd, user, flag(request, "stdin", True), None)
        try:
            process = self._launch(launch, info) if pty is None else self._launch_pty(launch, info, pty)
        except OSError as exc:
            raise ConnectError("resource_exhausted", f"no process can be started: {self._explain(exc)}") from exc
        self._limits.make_expendable(process.pid)
        self._running[process.pid] = process
        self._forget(process.pid)
        self._log.add("info", "process started", pid=process.pid, cmd=argv[0], user=user.name)
        return process

    def _launch(self, launch: Launch, info: Message) -> Process:
        child = self._within_limits(lambda limits: start_with_pipes(launch, limits))
        info["pid"] = child.pid
        outputs = {child.stdout: "stdout", child.stderr: "stderr"}
        process = Process(child.pid, info, child.stdin, outputs, Ring(self._rings), self._limits, self._remember)
        failed = child.failed_code
        self._reaper.watch(child.pid, lambda status: process.exited(status if failed is None else failed << 8))
        return process

    def _launch_pty(self, launch: Launch, info: Message, pty: Message) -> Process:
        columns, rows = _size(pty)
        launch.env.setdefault("TERM", "xterm-256color")
        master, slave = os.openpty()
        try:
            termios.tcsetwinsize(slave, (rows, columns))
            os.fchown(slave, launch.user.uid, -1)
            os.set_blocking(master, False)
            launch.tty = slave
            pid = self._within_limits(lambda limits: start_with_terminal(launch, limits))
        except OSError:
            os.close(master)
            raise
        finally:
            os.close(slave)
        info["pid"] = pid
        process = Process(pid, info, master, {master: "pty"}, Ring(self._rings), self._limits, self._remember)
        self._reaper.watch(pid, process.exited)
        return process

    def _within_limits(self, start: Callable[[tuple[int, int]], Started]) -> Started:
        """Raises OSError: not even with what is kept for this."""
        soft = process_soft_limit(self._process_limit, self._count_processes())
        try:
            return start((self._open_files_count, soft))
        except BlockingIOError:
            return start((self._open_files_count, self._process_limit))

    def _count_processes(self) -> int:
        """What was counted a moment ago, and what we have started since."""
        now = time.monotonic()
        if now >= self._counted_at + COUNT_S:
            self._process_count, self._counted_at = process_count(), now
        else:
            self._process_count += 1
        return self._process_count

    def _explain(self, exc: OSError) -> str:
        """Which limit it was."""
        if exc.errno == errno.EAGAIN:
            self._limits.hit("processes", limit_count=self._process_limit)
            return f"the sandbox's limit of {self._process_limit} processes is reached; end some first"
        if exc.errno == errno.ENOMEM:
            self._limits.hit("memory")
            return "the sandbox's memory limit is reached; end some processes first"
        return exc.strerror or repr(exc)

    async def _follow(self, process: Process, stream: ServerStream, since: int | None) -> None:
        silence_s = keepalive_s(stream.exchange)
        subscriber = process.subscribe(self._budget, since or 0)
        try:
            start: Message = {"pid": process.pid}
            if since is not None:
                start["seq"] = str(subscriber.seq)
            stream.send(dump_json({"event": {"start": start}}))
            stream.exchange.probe_with(KEEPALIVE_FRAME)
            flushed_at = 0.0
            while True:
                if subscriber.is_idle and not await subscriber.wait(silence_s):
                    stream.send_frames(KEEPALIVE_FRAME)
                    continue
                share_bytes = self._budget.share_bytes
                early_s = flushed_at + FLUSH_S - time.monotonic()
                if early_s > 0:
                    await subscriber.wait(early_s, share_bytes // 2)
                seq = subscriber.seq if since is not None else None
                frames = data_frames(subscriber.take(share_bytes), seq)
                if subscriber.is_over:
                    if isinstance(subscriber.end, bytes):
                        stream.end(last=frames + subscriber.end)
                    else:
                        stream.end(subscriber.end, last=frames)
                    return
                stream.send_frames(frames)
                flushed_at = time.monotonic()
                await stream.drain(share_bytes)
        finally:
            process.unsubscribe(subscriber)

    def _remember(self, process: Process) -> None:
        self._log.add("info", "process exited", pid=process.pid, status=process.status)
        self._running.pop(process.pid, None)
        process.info = {}
        loop = self._loop
        self._ended[process.pid] = (loop.time() + RETAIN_S, process)
        if len(self._ended) > RETAIN_COUNT:
            self._forget(next(iter(self._ended)))
        if self._sweep is None:
            self._sweep = loop.call_later(RETAIN_S, self._forget_old)

    def _forget(self, pid: int) -> None:
        _, process = self._ended.pop(pid, (0.0, None))
        if process is not None:
            process.ring.close()

    def _forget_old(self) -> None:
        loop = self._loop
        self._sweep = None
        for pid, (forget_at, _) in list(self._ended.items()):
            if forget_at > loop.time():
                self._sweep = loop.call_at(forget_at, self._forget_old)
                break
            self._forget(pid)

    def _select(self, request: Message, *, also_ended: bool = False) -> Process:
        selector = submessage(request, "process") or {}
        if "tag" in selector:
            tag = as_text(selector["tag"], "tag")
            found = next((process for process in reversed(self._running.values()) if process.tag == tag), None)
            if found is None and also_ended:
                found = next((process for _, process in reversed(self._ended.values()) if process.tag == tag), None)
            if found is None:
                raise ConnectError("not_found", f"process with tag {tag} not found")
            return found
        pid = number(selector, "pid", 0, low=0, high=2**32 - 1)
        found = self._running.get(pid)
        if found is None and also_ended and pid in self._ended:
            found = self._ended[pid][1]
        if found is None:
            raise ConnectError("not_found", f"process with pid {pid} not found")
        return found


def _since(exchange: Exchange) -> int | None:
    """From which byte of its output on a client of ours follows a process. None: one of E2B's, which did not ask
    and is told no numbers. Raises ConnectError."""
    raw = exchange.head.headers.get(SINCE_HEADER)
    if raw is None:
        return None
    if not raw.isascii() or not raw.isdigit() or len(raw) > 18:
        raise ConnectError("invalid_argument", "Firebrick-Since must be a whole number")
    return int(raw)


async def _feed(process: Process, message: Message) -> None:
    kind = "pty" if process.is_pty else "stdin"
    data = binary(message, kind)
    if data is None:
        other = "stdin" if process.is_pty else "pty"
        if other in message:
            raise ConnectError("internal", f"error writing to {other}: {other} not assigned to process")
        raise ConnectError("invalid_argument", "input holds neither stdin nor pty")
    await process.write(data)


def _size(pty: Message) -> tuple[int, int]:
    size = submessage(pty, "size") or {}
    return number(size, "cols", 80, low=1, high=65535), number(size, "rows", 24, low=1, high=65535)


def _given(config: Message, *names: str) -> Message:
    return {name: config[name] for name in names if config.get(name)}
