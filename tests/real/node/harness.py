"""A node agent as a process of its own, with real drivers, and a small image to run."""

import asyncio
import base64
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from firebrick.builder.template_store import IMAGE_NAME, LocalBuild, commit_build
from firebrick.linux.erofs import mkfs_command
from firebrick.model.errors import FirebrickError
from firebrick.model.ids import BuildId, TemplateId, new_sandbox_id
from firebrick.model.machine import Limits
from firebrick.rpc.node_api import NodeSandbox, StartSandbox
from firebrick.rpc.node_client import GrpcNodeClient
from tests.support.environment import clean_environ
from tests.support.wait import SLOWNESS, wait_for

PROGRAMS = (
    "bash", "sh", "id", "cat", "sleep", "env", "echo", "hostname", "head", "ls", "kill", "mount", "nproc", "rm",
    "mkdir", "stat", "chmod",
)  # fmt: skip
BUILD_ID = BuildId("00000000-0000-4000-8000-000000000001")
LIMITS = Limits(millicpu=2000, memory_mib=256, disk_mib=256, process_count=256)
TOKEN = "access-token"
AGENT_PORT = 49983
START_S = 60.0


def write_small_image(templates_dir: Path) -> None:
    """An image of a few programs of this machine with their libraries: no package, no network, a second."""
    tree = templates_dir / "tree"
    for name in ("tmp", "proc", "sys", "dev", "etc", "home/user", "root", "usr/bin", ".firebrick"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for link in ("bin", "lib", "lib64", "sbin"):
        (tree / f"usr/{link}").mkdir(exist_ok=True)
        (tree / link).symlink_to(f"usr/{link}")
    files = {path for name in PROGRAMS if (path := shutil.which(name))}
    listed = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False).stdout
    files |= {word for word in listed.split() if word.startswith("/") and not word.endswith(":")}
    for file in files:
        target = tree / Path(os.path.normpath(file)).relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(file).resolve(), target)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n")
    (tree / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    for name in ("hosts", "hostname", "resolv.conf", "profile"):
        (tree / "etc" / name).touch()
    os.chown(tree / "home/user", 1000, 1000)
    (tree / "tmp").chmod(0o1777)
    (templates_dir / BUILD_ID).mkdir()
    image = templates_dir / BUILD_ID / IMAGE_NAME
    subprocess.run(mkfs_command(image, tree), check=True, capture_output=True)
    shutil.rmtree(tree)
    build = LocalBuild(
        build_id=BUILD_ID, alias="base", key="small", image=image, limits=LIMITS, created_at=datetime.now(UTC)
    )
    commit_build(templates_dir, build, facts={})


@dataclass(slots=True)
class NodeUnderTest:
    """Start, kill -9, start again: the same node each time."""

    data_dir: Path
    env: dict[str, str]
    client: GrpcNodeClient
    process: asyncio.subprocess.Process | None = None
    log: list[str] = field(default_factory=list)

    async def start(self) -> None:
        with (self.data_dir / "node.log").open("ab") as sink:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "firebrick.main.node", env=self.env, stdout=sink, stderr=sink
            )
        await wait_for(self.is_ready, timeout_s=START_S, status=self.said)

    async def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, self.said()
        try:
            await self.client.describe()
        except FirebrickError:
            return False
        return True

    def said(self) -> str:
        return (self.data_dir / "node.log").read_text()[-4000:]

    async def kill_9(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()

    async def end_all(self) -> None:
        """What `firebrick down` does after the stop."""
        done = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "firebrick.main.node", "--end-all", env=self.env,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await done.communicate()
        assert done.returncode == 0, output.decode()


@asynccontextmanager
async def node_under_test(data_dir: Path, **settings: Any) -> AsyncIterator[NodeUnderTest]:
    """A started node; at the end everything it runs is ended the way `firebrick down` does it."""
    env = clean_environ() | {f"FIREBRICK_{key.upper()}": str(value) for key, value in settings.items()}
    env["FIREBRICK_DATA_DIR"] = str(data_dir)
    client = GrpcNodeClient(f"unix:{data_dir}/run/node.sock", patience=SLOWNESS)
    node = NodeUnderTest(data_dir=data_dir, env=env, client=client)
    try:
        await node.start()
        yield node
    finally:
        await client.close()
        await node.stop()
        print(node.said())
        await node.end_all()


def request(**changes: Any) -> StartSandbox:
    return StartSandbox(
        sandbox_id=new_sandbox_id(),
        template_id=TemplateId("base"),
        build_id=BUILD_ID,
        limits=changes.pop("limits", LIMITS),
        env={"GREETING": "hello"},
        access_token=TOKEN,
        **changes,
    )


async def run_in(sandbox: NodeSandbox, command: str, *, user: str = "user") -> tuple[str, int]:
    """Run a command through the guest agent's own protocol; return its output and exit code."""
    message = json.dumps({"process": {"cmd": "/bin/bash", "args": ["-c", command]}}).encode()
    headers = {
        "Content-Type": "application/connect+json",
        "Connect-Protocol-Version": "1",
        "X-Access-Token": TOKEN,
        "Authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode(),
    }
    url = f"http://{sandbox.address}:{AGENT_PORT}/process.Process/Start"
    async with httpx.AsyncClient(trust_env=False, timeout=30 * SLOWNESS) as http:
        answer = await http.post(url, headers=headers, content=struct.pack(">BI", 0, len(message)) + message)
    assert answer.status_code == 200, answer.text
    output, code = "", -1
    for event in _events(answer.content):
        data = event.get("data", {})
        output += base64.b64decode(data.get("stdout", "") or data.get("stderr", "")).decode(errors="replace")
        if "end" in event:
            code = int(event["end"].get("exitCode", 0))
    return output, code


def _events(body: bytes) -> list[dict[str, Any]]:
    events = []
    while len(body) >= 5:
        flags, length = struct.unpack(">BI", body[:5])
        document = json.loads(body[5 : 5 + length] or b"{}")
        if flags & 2:
            assert "error" not in document, document
        else:
            events.append(document.get("event", {}))
        body = body[5 + length :]
    return events
