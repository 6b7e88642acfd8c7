"""A whole Firebrick of its own for tests and benchmarks: own data directory, own ports, own network.

Templates and tools are shared through a cache directory (`FIREBRICK_TEST_CACHE`), because building the base
template takes minutes and is the same for all; everything else is new and is removed at the end.
"""

import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from firebrick.builder.agent_image import build_agent_image
from firebrick.builder.base_template import build_base_template
from firebrick.config import Config
from tests.support.environment import clean_environ
from tests.support.leaks import RUN_MARK, marked_processes
from tests.support.wait import SLOWNESS

CACHE = Path(os.environ.get("FIREBRICK_TEST_CACHE", "/var/tmp/firebrick-test-cache"))
SHARED = ("templates", "tools")
UP_TIMEOUT_S = 900
REQUEST_TIMEOUT_S = 60.0
"""As the official SDK's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A running instance.

    Fields:
        env: the environment that makes `firebrick` and E2B's clients use it.
        crowd_count: how many sandboxes of the base template tests may have in it at once.
    """

    data_dir: Path
    env: dict[str, str]
    crowd_count: int = 20

    @property
    def api_url(self) -> str:
        return self.env["E2B_API_URL"]

    @property
    def sandbox_url(self) -> str:
        return self.env["E2B_SANDBOX_URL"]

    @property
    def api_key(self) -> str:
        return self.env["E2B_API_KEY"]

    @property
    def sdk(self) -> dict[str, Any]:
        """Options for every call of the official SDK."""
        target = {"api_key": self.api_key, "api_url": self.api_url, "sandbox_url": self.sandbox_url}
        return target | {"request_timeout": REQUEST_TIMEOUT_S * SLOWNESS}

    def firebrick(self, *args: str, check: bool = True, timeout_s: float = 120 * SLOWNESS, **options: Any) -> Any:
        """Run the CLI as a user does, in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "firebrick.cli", *args],
            env=self.env, check=check, capture_output=True, text=True, timeout=timeout_s, **options,
        )  # fmt: skip

    def pids(self) -> dict[str, int]:
        """{role: pid} of every process that `firebrick status` shows as running."""
        document = json.loads(self.firebrick("status", "--json", check=False).stdout)
        return {item["role"]: item["pid"] for item in document["processes"] if item["pid"]}

    def health(self) -> dict[str, str]:
        document = json.loads(self.firebrick("status", "--json", check=False).stdout)
        return {item["role"]: item["health"] for item in document["processes"]}

    def api(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One raw request to the REST API with this instance's key (or `headers`)."""
        headers = options.pop("headers", {"X-API-Key": self.api_key})
        with httpx.Client(base_url=self.api_url, trust_env=False, timeout=REQUEST_TIMEOUT_S * SLOWNESS) as client:
            return client.request(method, path, headers=headers, **options)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on right now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def free_prefix() -> str:
    """A /20 for slots that no route of this host touches."""
    routes = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True).stdout
    # 10.64.0.0 to 10.127.255.255: nothing of a test machine is likely there, and routes tell if it is. Any of them,
    # not the first: another run that starts at this moment sees the same routes.
    free = [second for second in range(64, 128) if f"10.{second}." not in routes]
    if not free:
        raise RuntimeError("every /16 from 10.64.0.0 to 10.127.0.0 is routed")
    return f"10.{random.choice(free)}.{16 * random.randrange(16)}.0/20"


def fill_cache() -> None:
    """Build what instances share, as far as it is not there: for those that are brought up where no mirror is."""
    with tempfile.TemporaryDirectory(prefix="firebrick-", dir="/var/tmp") as name:
        config = Config(data_dir=Path(name))
        for shared in SHARED:
            (CACHE / shared).mkdir(parents=True, exist_ok=True)
            (config.data_dir / shared).symlink_to(CACHE / shared)
        asyncio.run(build_agent_image(config.tools_dir / "agent", mirror=None))
        asyncio.run(build_base_template(config, progress=lambda step, part: None))


@contextmanager
def instance(**settings: str) -> Iterator[Instance]:
    """Bring one up, and take it down with everything it made. `settings` are settings, without the prefix."""
    data_dir = Path(tempfile.mkdtemp(prefix="firebrick-", dir="/var/tmp"))
    for name in SHARED:
        (CACHE / name).mkdir(parents=True, exist_ok=True)
        (data_dir / name).symlink_to(CACHE / name)
    api_port, edge_port = free_ports(2)
    clean = clean_environ()
    chosen = {
        "data_dir": str(data_dir),
        "api_port": str(api_port),
        "edge_port": str(edge_port),
        "network_prefix": free_prefix(),
        "slot_count": "32",
    } | settings
    # Its processes live longer than a test and are replaced when they die: they are counted here, at its end.
    clean[RUN_MARK] = data_dir.name
    env = clean | {f"FIREBRICK_{key.upper()}": value for key, value in chosen.items()}
    bare = Instance(data_dir=data_dir, env=env)
    try:
        done = bare.firebrick("up", "--detach", check=False, timeout_s=UP_TIMEOUT_S)
        if done.returncode != 0:
            raise RuntimeError(f"firebrick up failed:\n{done.stdout}\n{done.stderr}\n{_logs(data_dir)}")
        key = json.loads((data_dir / "credentials.json").read_text())["api_key"]
        yield Instance(
            data_dir=data_dir,
            env=env
            | {
                "E2B_API_URL": f"http://127.0.0.1:{api_port}",
                "E2B_SANDBOX_URL": f"http://127.0.0.1:{edge_port}",
                "E2B_API_KEY": key,
            },
        )
    finally:
        down = bare.firebrick("down", check=False, timeout_s=300)
        if down.returncode != 0:
            raise RuntimeError(f"firebrick down failed:\n{down.stdout}\n{down.stderr}\n{_logs(data_dir)}")
        if left := marked_processes(data_dir.name):
            raise RuntimeError("firebrick down left processes:\n" + "\n".join(left))
        shutil.rmtree(data_dir)


def _logs(data_dir: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in (data_dir / "log").glob("*.log"))
