"""The image that machines see: it runs where nothing else is, and as PID 1."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from firebrick.builder.agent_image import agent_argv, agent_env, build_agent_image
from tests.contract.guest.agent import CONTROL_TOKEN, GUEST, Agent, parents
from tests.support.wait import wait_for_sync

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: changes the root directory and makes namespaces"),
]
LOOPBACK = {**agent_env(CONTROL_TOKEN), "FIREBRICK_AGENT_HOST": "127.0.0.1", "FIREBRICK_AGENT_PORT": "0"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap: the image is made from Debian packages")
    return tmp_path_factory.mktemp("image") / "agent"


async def test_the_image_runs_in_an_empty_root(image: Path, tmp_path: Path) -> None:
    """Built once and found again, the image starts in a root without any library, and small."""
    await build_agent_image(image, mirror=None)
    told = json.loads((image / "agent-image.json").read_text())
    assert told["packages"]["python3.11-minimal"].startswith("3.11.")
    built = image.stat().st_ino
    await build_agent_image(image, mirror=None)
    assert image.stat().st_ino == built
    root = tmp_path / "root"
    shutil.copytree(image, root / ".firebrick")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (root / "dev").mkdir()
    agent = Agent(argv=["chroot", str(root), *agent_argv()], env=LOOPBACK | {"PYTHONPATH": ""})
    try:
        assert agent.init(defaultUser="root").status_code == 204
        entries = agent.unary("filesystem.Filesystem/ListDir", {"path": "/"}).json()["entries"]
        assert [entry["name"] for entry in entries] == [".firebrick", "dev", "etc"]
        answer = agent.request(
            "POST", "/files?path=/a", content=b"x", headers={"Content-Type": "application/octet-stream"}
        )
        assert answer.status_code == 200
        # The image's own loader is the only program there is.
        output, end = agent.run("/.firebrick/lib/ld.so", "--version", stdin=True)
        assert end["exitCode"] == 0
        assert output.startswith(b"ld.so")
        assert agent.rss_kib < 25 * 1024
    finally:
        assert agent.stop() == 0


def test_as_pid_1_it_reaps_and_ends() -> None:
    """As the first process of a machine it collects every orphan and ends everything on SIGTERM."""
    inner = ["unshare", "--pid", "--fork", "--kill-child", "python3.11", "-S", "-B", "-m", "firebrick_guest.main"]
    agent = Agent(argv=inner, env={"PYTHONPATH": str(GUEST), "PATH": os.environ["PATH"]})
    first = agent.children()[0]
    try:
        assert agent.init().status_code == 204
        assert agent.run("/bin/sh", "-c", "(setsid sh -c 'exec sleep 0.1' &) ; exec true")[1]["exitCode"] == 0
        wait_for_sync(lambda: not children_of(first))
        handle = agent.sandbox().commands.run("setsid sleep 300 & sleep 300", background=True)
        assert handle.pid > 1
        inside = children_of(first)
        assert inside
        os.kill(first, signal.SIGTERM)
        assert agent.process.wait(10) == 0
    finally:
        agent.process.kill()
        agent.process.wait()
        agent.http.close()
        assert agent.process.stdout
        agent.process.stdout.close()
    wait_for_sync(lambda: not set(inside) & set(parents()))


def children_of(pid: int) -> list[int]:
    return [child for child, parent in parents().items() if parent == pid]
