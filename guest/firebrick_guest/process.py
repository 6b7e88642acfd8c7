"""One command of a user: its output, its input and its end.

    running ──exit──▶ exited ──both outputs closed, or killed by us──▶ ended

A command that left a background child behind keeps its stream open as long as that child holds the output,
but one that was killed through us ends at once. Its last output is in a ring, for whoever comes late; without a
reader it never waits.
"""

import asyncio
import os
import signal
import termios
from collections.abc import Callable

from firebrick_guest.connect import frame
from firebrick_guest.errors import ConnectError
from firebrick_guest.json_text import dump_json
from firebrick_guest.limits import MEMORY_NOTE, LimitWatch
from firebrick_guest.output import StreamBudget, Subscriber
from firebrick_guest.reaper import tell_session
from firebrick_guest.ring import Ring

READ_BYTES = 32 * 1024
PTY_READ_BYTES = 16 * 1024
# What is left in the pipes of a killed command is still shown, up to this.
LAST_WORDS_BYTES = 1024 * 1024

SIGNAL_NAMES = {
    signal.SIGHUP: "hangup",
    signal.SIGINT: "interrupt",
    signal.SIGQUIT: "quit",
    signal.SIGILL: "illegal instruction",
    signal.SIGTRAP: "trace/breakpoint trap",
    signal.SIGABRT: "aborted",
    signal.SIGBUS: "bus error",
    signal.SIGFPE: "floating point exception",
    signal.SIGKILL: "killed",
    signal.SIGUSR1: "user defined signal 1",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGUSR2: "user defined signal 2",
    signal.SIGPIPE: "broken pipe",
    signal.SIGALRM: "alarm clock",
    signal.SIGTERM: "terminated",
}


def end_event(wait_status: int, note: str = "") -> dict[str, object]:
    """How E2B tells of an end: by exit with the code, by signal with -1 and its name. `note` is added to the error."""
    if os.WIFEXITED(wait_status):
        code = os.WEXITSTATUS(wait_status)
        end: dict[str, object] = {"exitCode": code, "exited": True, "status": f"exit status {code}"}
        if code:
            end["error"] = f"exit status {code}{note}"
        return end
    number = os.WTERMSIG(wait_status)
    text = f"signal: {SIGNAL_NAMES.get(number, f'signal {number}')}"  # type: ignore[call-overload]
    if os.WCOREDUMP(wait_status):
        text += " (core dumped)"
    return {"exitCode": -1, "exited": False, "status": text, "error": text + note}


class Process:
    """A started command. `stdin` and `outputs` are our non-blocking ends, owned from here on."""

    def __init__(
        self,
        pid: int,
        info: dict[str, object],
        stdin: int | None,
        outputs: dict[int, str],
        ring: Ring,
        limits: LimitWatch,
        ended: Callable[["Process"], None],
    ) -> None:
        self.pid = pid
        self.info = info
        self.tag = info.get("tag")
        self.is_pty = "pty" in outputs.values()
        self.ring = ring
        self.status = "running"
        self.end: bytes | ConnectError | None = None
        self._loop = asyncio.get_running_loop()
        self._stdin = stdin
        self._stdin_turn = asyncio.Lock()
        self._stdin_ready = asyncio.Event()
        self._outputs = outputs
        self._on_end = ended
        self._limits = limits
        self._kills_before = limits.memory_kill_count()
        self._wait_status: int | None = None
        self._gone = self._loop.create_future()
        self._is_killed = False
        self._is_expired = False
        self._is_paused = False
        self._subscribers: set[Subscriber] = set()
        self._timer: asyncio.TimerHandle | None = None
        for descriptor in outputs:
            self._loop.add_reader(descriptor, self._read, descriptor)

    def subscribe(self, budget: StreamBudget, since: int) -> Subscriber:
        """Follow from now on, after what the ring still holds from byte number `since` on."""
        subscriber = Subscriber(self._resume, budget, max(since, self.ring.first_seq))
        for kind, data in self.ring.pieces(since):
            subscriber.push(kind, data)
        if self.end is not None:
            subscriber.finish(self.end)
        else:
            self._subscribers.add(subscriber)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        subscriber.close()
        self._subscribers.discard(subscriber)
        self._resume()

    def expire_after(self, timeout_s: float) -> None:
        """Kill it when `timeout_s` has passed; its streams then end with `deadline_exceeded`."""
        self._timer = self._loop.call_later(timeout_s, self._expire)

    def send_signal(self, number: int) -> None:
        self._is_killed = True
        # NOTE: once reaped the pid may be another's; then there is only the stream left to end.
        if self._wait_status is None:
            os.kill(self.pid, number)
        else:
            self._finish()

    async def gone(self, timeout_s: float) -> None:
        """Wait until the kernel knows it no more, at most `timeout_s`."""
        await asyncio.wait([self._gone], timeout=timeout_s)

    async def write(self, data: bytes) -> None:
        """Write all of `data` to its input, waiting while it does not read. Raises ConnectError."""
        async with self._stdin_turn:
            view = memoryview(data)
            while view:
                view = view[await self._write_some(view) :]

    def close_stdin(self) -> None:
        if self.is_pty:
            raise ConnectError(
                "unknown",
                "error closing stdin: cannot close stdin for PTY process — send Ctrl+D (0x04) instead",
            )
        self._drop_stdin()

    def resize(self, columns: int, rows: int) -> None:
        if not self.is_pty or self._stdin is None:
            raise ConnectError("internal", "error resizing tty: tty not assigned to process")
        termios.tcsetwinsize(self._stdin, (rows, columns))
        # gVisor (as of 2024-07) tells nobody of it.
        tell_session(self.pid, signal.SIGWINCH)

    def exited(self, wait_status: int) -> None:
        """The reaper's word."""
        self._wait_status = wait_status
        self._gone.set_result(None)
        if self._is_killed or not self._outputs:
            self._finish()
        elif not self._is_paused:
            # The pipes' end is usually here already: looking now saves a turn of the loop.
            for descriptor in list(self._outputs):
                self._read(descriptor)

    def _read(self, descriptor: int) -> None:
        data = self._read_some(descriptor)
        if data:
            self._emit(self._outputs[descriptor], data)
        elif data is not None:
            self._close_output(descriptor)
            if self._wait_status is not None and not self._outputs:
                self._finish()

    def _read_some(self, descriptor: int) -> bytes | None:
        """b"" at the end, None when there is nothing now."""
        try:
            return os.read(descriptor, PTY_READ_BYTES if self.is_pty else READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            # A terminal whose last holder is gone reads as an input/output error.
            return b""

    def _emit(self, kind: str, data: bytes) -> None:
        self.ring.add(kind, data)
        for subscriber in self._subscribers:
            subscriber.push(kind, data)
            if subscriber.is_full and not self._is_paused:
                self._is_paused = True
                for descriptor in self._outputs:
                    self._loop.remove_reader(descriptor)

    def _resume(self) -> None:
        if self._is_paused and not any(subscriber.is_full for subscriber in self._subscribers):
            self._is_paused = False
            for descriptor in self._outputs:
                self._loop.add_reader(descriptor, self._read, descriptor)

    def _expire(self) -> None:
        self._is_expired = True
        self.send_signal(signal.SIGKILL)

    def _finish(self) -> None:
        if self.end is not None:
            return
        assert self._wait_status is not None
        self._drain_outputs()
        if self._timer:
            self._timer.cancel()
        if self._is_expired:
            self.end = ConnectError("deadline_exceeded", "the command's timeout has passed; it was killed")
        else:
            self.end = frame(dump_json({"event": {"end": end_event(self._wait_status, self._note())}}))
        self.status = str(end_event(self._wait_status)["status"])
        for subscriber in self._subscribers:
            subscriber.finish(self.end)
        self._subscribers.clear()
        self._drop_stdin()
        self._on_end(self)

    def _note(self) -> str:
        """Why it was killed, if it was for memory; a shell tells of its child's kill by 128 + 9."""
        killed = self._wait_status in (signal.SIGKILL, (128 + signal.SIGKILL) << 8) and not self._is_killed
        return f" ({MEMORY_NOTE})" if killed and self._limits.memory_kill_count() > self._kills_before else ""

    def _drain_outputs(self) -> None:
        for descriptor, kind in list(self._outputs.items()):
            left = LAST_WORDS_BYTES
            while left > 0 and (data := self._read_some(descriptor)):
                self._emit(kind, data)
                left -= len(data)
            self._close_output(descriptor)

    def _close_output(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        del self._outputs[descriptor]
        if descriptor != self._stdin:
            os.close(descriptor)

    def _drop_stdin(self) -> None:
        descriptor, self._stdin = self._stdin, None
        if descriptor is not None:
            self._loop.remove_writer(descriptor)
            os.close(descriptor)
            self._stdin_ready.set()

    async def _write_some(self, view: memoryview) -> int:
        while True:
            if self._stdin is None:
                raise ConnectError("internal", "error writing to stdin: stdin not enabled or closed")
            try:
                return os.write(self._stdin, view)
            except BlockingIOError:
                await self._wait_stdin()
            except OSError as exc:
                raise ConnectError("internal", "error writing to stdin: stdin not enabled or closed") from exc

    async def _wait_stdin(self) -> None:
        """Until the input can take more, or is closed."""
        descriptor = self._stdin
        assert descriptor is not None
        self._stdin_ready = asyncio.Event()
        self._loop.add_writer(descriptor, self._stdin_ready.set)
        try:
            await self._stdin_ready.wait()
        finally:
            # NOTE: a closed descriptor's number may be another's by now; closing has removed the writer.
            if self._stdin is not None:
                self._loop.remove_writer(descriptor)
