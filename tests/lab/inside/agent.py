"""Runs commands inside an outer machine for whoever knows its token. Standard library only, one thread a connection.

Not our guest agent: the lab must work on the day that one does not. A connection is one request: a line of JSON,
then frames of kind (1 byte), length (4 bytes) and payload, until the frame `x` with the exit status. Whoever hangs
up before has the command killed with its whole session.
"""

import contextlib
import fcntl
import hmac
import json
import os
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

PORT = 7700
FRAME = struct.Struct(">cI")
CHUNK_BYTES = 1 << 18
LATE_OUTPUT_S = 0.5
"""How long output may come after the end of the command, from children that hold its pipes."""
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207


def identify(wanted: Mapping[str, Any]) -> int:
    """Make a machine that was restored from a state shared with others itself: name, time, randomness, addresses."""
    time.clock_settime(time.CLOCK_REALTIME, wanted["now"])
    seed = bytes.fromhex(wanted["seed"])
    with open("/dev/urandom", "wb", buffering=0) as device:
        fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
        fcntl.ioctl(device, RNDRESEEDCRNG)
    Path("/etc/machine-id").write_text(seed[:16].hex() + "\n")
    socket.sethostname(wanted["name"])
    hosts = "".join(f"{address} {name}\n" for name, address in wanted["hosts"].items())
    Path("/etc/hosts").write_text("127.0.0.1 localhost\n" + hosts)
    for argv in (
        ["ip", "link", "set", "lan", "down"],
        ["ip", "link", "set", "lan", "address", wanted["mac"], "up"],
        ["ip", "address", "replace", wanted["hosts"][wanted["name"]] + "/24", "dev", "lan"],
    ):
        subprocess.run(argv, check=True)
    return 0


class Connection(socketserver.StreamRequestHandler):
    """One request."""

    wbufsize = 0

    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        if not hmac.compare_digest(request.pop("token"), Path("/lab/token").read_text()):
            return
        self.sending = threading.Lock()
        if "identify" in request:
            self.send(b"x", struct.pack(">i", identify(request["identify"])))
            return
        try:
            process = start(request)
        except OSError as exc:
            self.send(b"2", f"{request['argv'][0]}: {exc.strerror}\n".encode())
            self.send(b"x", struct.pack(">i", 127))
            return
        outputs = [
            threading.Thread(target=self.forward, args=(kind, pipe), daemon=True)
            for kind, pipe in ((b"1", process.stdout), (b"2", process.stderr))
        ]
        for thread in (*outputs, threading.Thread(target=self.feed, args=(process,), daemon=True)):
            thread.start()
        status = process.wait()
        for thread in outputs:
            thread.join(LATE_OUTPUT_S)
        # A signal is told as a shell tells it.
        self.send(b"x", struct.pack(">i", status if status >= 0 else 128 - status))

    def send(self, kind: bytes, payload: bytes) -> None:
        with self.sending, contextlib.suppress(OSError):
            self.connection.sendall(FRAME.pack(kind, len(payload)) + payload)

    def forward(self, kind: bytes, pipe: IO[bytes]) -> None:
        while chunk := os.read(pipe.fileno(), CHUNK_BYTES):
            self.send(kind, chunk)

    def feed(self, process: subprocess.Popen[bytes]) -> None:
        """Hand input on; the end of the connection is the end of the command."""
        assert process.stdin
        while header := self.rfile.read(FRAME.size):
            _, length = FRAME.unpack(header)
            with contextlib.suppress(OSError, ValueError):
                if length:
                    process.stdin.write(self.rfile.read(length))
                else:
                    process.stdin.close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def start(request: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    env = {**os.environ, **request["env"]}
    if not shutil.which(request["argv"][0], path=env["PATH"]):
        raise FileNotFoundError(2, "not found")
    return subprocess.Popen(
        request["argv"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=env,
        cwd=request["cwd"],
        start_new_session=True,
    )


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    with Server(("", PORT), Connection) as server, open("/dev/ttyS0", "w") as console:
        print("LAB-READY", file=console, flush=True)
        server.serve_forever()
