"""A real guest agent on loopback, and ways to talk to it."""

import base64
import json
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from e2b import Sandbox
from e2b.connection_config import ConnectionConfig
from packaging.version import Version

from tests.support.wait import wait_for_sync

CONTROL_TOKEN = "control-token"
ACCESS_TOKEN = "access-token"
GUEST = Path(__file__).parents[3] / "guest"


def pick_user() -> str:
    """An unprivileged account when we may become it, else our own."""
    accounts = [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid == 1000 and Path(entry.pw_dir).is_dir()]
    return accounts[0] if os.geteuid() == 0 and accounts else pwd.getpwuid(os.geteuid()).pw_name


class Agent:
    """One agent process. `init` gives it a token; before that it is closed."""

    def __init__(self, argv: list[str] | None = None, env: dict[str, str] | None = None) -> None:
        own = {"FIREBRICK_CONTROL_TOKEN": CONTROL_TOKEN, "FIREBRICK_AGENT_HOST": "127.0.0.1"}
        own |= {"FIREBRICK_AGENT_PORT": "0", "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(GUEST)}
        command = argv or [sys.executable, "-S", "-B", "-m", "firebrick_guest.main"]
        self.process = subprocess.Popen(command, env=own | (env or {}), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline().split()[-1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.user = pick_user()
        self.http = httpx.Client(base_url=self.url, timeout=20)

    def init(self, **fields: Any) -> httpx.Response:
        body = {"accessToken": ACCESS_TOKEN, "defaultUser": self.user, "sandboxID": "sbx", "templateID": "base"}
        headers = {"X-Firebrick-Control": CONTROL_TOKEN}
        return self.http.post("/init", json={**body, **fields}, headers=headers)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"X-Access-Token": ACCESS_TOKEN, **options.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **options)

    def unary(self, procedure: str, message: object, **headers: str) -> httpx.Response:
        return self.request("POST", f"/{procedure}", json=message, headers=headers)

    def stream(self, procedure: str, message: object, **headers: str) -> list[tuple[int, Any]]:
        """All frames of a server stream, as (flags, message)."""
        body = json.dumps(message).encode()
        answer = self.frames(procedure, b"\0" + len(body).to_bytes(4, "big") + body, **headers)
        assert answer.status_code == 200, answer.text
        return split_frames(answer.content)

    def frames(self, procedure: str, body: bytes, **headers: str) -> httpx.Response:
        kind = {"Content-Type": "application/connect+json"}
        return self.request("POST", f"/{procedure}", content=body, headers={**kind, **headers})

    def run(self, *argv: str, **fields: Any) -> tuple[bytes, dict[str, Any]]:
        """Run a command without a shell; its output and its end event."""
        frames = self.stream("process.Process/Start", start_message(*argv, **fields))
        events = [message["event"] for flags, message in frames if flags == 0]
        output = b"".join(base64.b64decode(piece) for event in events for piece in event.get("data", {}).values())
        return output, events[-1]["end"]

    def raw(self, request: bytes, *, until_close: bool = True) -> bytes:
        """Send bytes as they are and read what comes back until the agent closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
                if not until_close:
                    break
            return answer

    def sandbox(self) -> Sandbox:
        """The official SDK, pointed at this agent."""
        headers = {"E2b-Sandbox-Id": "sbx", "E2b-Sandbox-Port": "49983", "X-Access-Token": ACCESS_TOKEN}
        config = ConnectionConfig(sandbox_url=self.url, api_key="e2b_" + "0" * 40, extra_sandbox_headers=headers)
        return Sandbox(
            sandbox_id="sbx",
            sandbox_domain=None,
            envd_version=Version("0.6.13"),
            envd_access_token=ACCESS_TOKEN,
            connection_config=config,
        )

    @property
    def descriptor_count(self) -> int:
        """Open descriptors but sockets: those are the clients', who keep their connections."""
        folder = f"/proc/{self.process.pid}/fd"
        count = 0
        for name in os.listdir(folder):
            try:
                count += not os.readlink(f"{folder}/{name}").startswith("socket:")
            except FileNotFoundError:
                continue
        return count

    @property
    def socket_count(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd")) - self.descriptor_count

    @property
    def rss_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def children(self) -> list[int]:
        return [pid for pid, parent in parents().items() if parent == self.process.pid]

    def stop(self) -> int:
        self.http.close()
        self.process.terminate()
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()

    def check_nothing_left(self, descriptor_count: int) -> None:
        """What requests opened is closed again, and what they started has ended."""
        wait_for_sync(lambda: not self.children() and self.descriptor_count <= descriptor_count)


def start_message(*argv: str, **fields: Any) -> dict[str, Any]:
    config = {"cmd": argv[0], "args": list(argv[1:])}
    config |= {name: fields.pop(name) for name in ("cwd", "envs") if name in fields}
    return {"process": config, "stdin": False, **fields}


def split_frames(body: bytes) -> list[tuple[int, Any]]:
    frames = []
    while body:
        size = int.from_bytes(body[1:5], "big")
        frames.append((body[0], json.loads(body[5 : 5 + size])))
        body = body[5 + size :]
    return frames


def parents() -> dict[int, int]:
    """Every process and its parent."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(name)] = int(stat.rpartition(")")[2].split()[1])
    return found
