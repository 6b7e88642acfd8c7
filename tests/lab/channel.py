"""The client of `inside/agent.py`: one command per connection, output as it comes, the exit status at the end."""

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.inside.agent import CHUNK_BYTES, FRAME


class ChannelBroken(Exception):
    """The connection ended before the command did: the machine is gone, or hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A finished command."""

    status: int
    stdout: bytes = b""
    stderr: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """To one outer machine. `port` is on this machine's loopback; `token` is that of its build."""

    port: int
    token: str
    env: Mapping[str, str] = field(default_factory=dict)

    def run(
        self,
        *argv: str,
        stdin: Iterable[bytes] = (),
        timeout_s: float = 600,
        cwd: str = "/",
        stdout: Callable[[bytes], Any] | None = None,
        stderr: Callable[[bytes], Any] | None = None,
    ) -> Done:
        """Run a command and wait for it; output goes to the callables as it comes, or else into the answer.

        Raises:
            TimeoutError: nothing came for `timeout_s`; the command is killed, as whenever the connection ends.
            ChannelBroken: the machine hung up.
        """
        collected = {b"1": bytearray(), b"2": bytearray()}
        sinks = {b"1": stdout or collected[b"1"].extend, b"2": stderr or collected[b"2"].extend}
        request = {"argv": list(argv), "env": dict(self.env), "cwd": cwd}
        with self._open(request, timeout_s) as connection:
            feeder = threading.Thread(target=_feed, args=(connection, stdin), daemon=True)
            feeder.start()
            with connection.makefile("rb") as frames:
                for kind, payload in _frames(frames):
                    if kind == b"x":
                        (status,) = struct.unpack(">i", payload)
                        return Done(status=status, stdout=bytes(collected[b"1"]), stderr=bytes(collected[b"2"]))
                    sinks[kind](payload)
        raise ChannelBroken(f"the machine hung up while it ran: {' '.join(argv)}")

    def shell(self, script: str, **options: Any) -> str:
        """What a shell script prints; a failing one raises with what it said."""
        done = self.run("/bin/sh", "-ec", script, **options)
        if done.status != 0:
            said = (done.stdout[-2000:] + done.stderr[-2000:]).decode(errors="replace")
            raise RuntimeError(f"in the lab, this ended with {done.status}: {script}\n{said}")
        return done.stdout.decode(errors="replace")

    def identify(self, wanted: Mapping[str, Any], timeout_s: float = 30) -> None:
        """Give a machine its name, time, addresses and randomness: see `agent.identify`."""
        with self._open({"identify": wanted}, timeout_s) as connection, connection.makefile("rb") as frames:
            if next(_frames(frames), None) != (b"x", struct.pack(">i", 0)):
                raise ChannelBroken("the machine did not take its name")

    def put(self, archive: Iterable[bytes], target: str) -> None:
        """Unpack a tar archive into the folder `target`, made if missing."""
        done = self.run("/bin/sh", "-ec", 'mkdir -p "$1"; exec tar -C "$1" -xf -', "put", target, stdin=archive)
        if done.status != 0:
            raise RuntimeError(f"unpacking into {target} of the lab failed: {done.stderr.decode(errors='replace')}")

    def get(self, source: str, archive: Path) -> None:
        """Write the folder or file `source` as a tar archive, names relative to it."""
        script = 'if [ -d "$1" ]; then exec tar -C "$1" -cf - .; fi; exec tar -C "${1%/*}/" -cf - "${1##*/}"'
        with archive.open("wb") as file:
            done = self.run("/bin/sh", "-ec", script, "get", source, stdout=file.write)
        if done.status != 0:
            raise RuntimeError(f"packing {source} in the lab failed: {done.stderr.decode(errors='replace')}")

    def _open(self, request: Mapping[str, Any], timeout_s: float) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)
        connection.sendall(json.dumps({"token": self.token, **request}).encode() + b"\n")
        return connection


def _feed(connection: socket.socket, stdin: Iterable[bytes]) -> None:
    # The command may end, and the connection with it, before it has read all.
    with suppress(OSError, ValueError):
        for chunk in stdin:
            for start in range(0, len(chunk), CHUNK_BYTES):
                piece = chunk[start : start + CHUNK_BYTES]
                connection.sendall(FRAME.pack(b"0", len(piece)) + piece)
        connection.sendall(FRAME.pack(b"0", 0))


def _frames(stream: Any) -> Iterator[tuple[bytes, bytes]]:
    try:
        while len(header := stream.read(FRAME.size)) == FRAME.size:
            kind, length = FRAME.unpack(header)
            yield kind, stream.read(length)
    except ConnectionError:
        return


def to_our_output(stream: Any = None) -> Callable[[bytes], None]:
    """A sink that passes bytes on at once."""
    target = (stream or sys.stdout).buffer

    def write(chunk: bytes) -> None:
        target.write(chunk)
        target.flush()

    return write
