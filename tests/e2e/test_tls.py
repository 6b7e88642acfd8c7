"""`firebrick up --tls`: E2B's clients with a domain, a key and the authority's file, and nothing else."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.instance import Instance, free_ports, instance
from tests.support.runtimes import missing_runtime

RUNTIME = "container"


def names_lead_here() -> bool:
    try:
        return bool(socket.getaddrinfo("probe.sandbox.localhost", 443))
    except OSError:
        return False


@pytest.fixture(scope="module")
def secured() -> Iterator[Instance]:
    """An instance whose edge speaks TLS; its environment is what `firebrick env` prints."""
    if why := missing_runtime(RUNTIME):
        pytest.skip(why)
    if not names_lead_here():
        pytest.skip("names below .localhost have no address here: apt-get install libnss-myhostname")
    with instance(runtime=RUNTIME, tls_port=str(free_ports(1)[0])) as found:
        yield found


def client_env(found: Instance) -> dict[str, str]:
    """A user's shell after eval "$(firebrick env)"."""
    printed = found.firebrick("env").stdout
    base = {key: value for key, value in found.env.items() if not key.startswith(("E2B_", "FIREBRICK_"))}
    done = subprocess.run(
        ["sh", "-c", 'eval "$1"; env -0', "sh", printed], env=base, capture_output=True, text=True, check=True
    )
    return dict(item.split("=", 1) for item in done.stdout.split("\0") if item)


def run_python(found: Instance, code: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=client_env(found) | more, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SDK = """
import os, urllib.request, httpx
from e2b import Sandbox
assert not {"E2B_API_URL", "E2B_SANDBOX_URL"} & set(os.environ)
with Sandbox.create(timeout=90) as box:
    print(box.commands.run("echo hello").stdout.strip())
    box.files.write("/tmp/x", "content")
    print(box.files.read("/tmp/x"))
    print(urllib.request.urlopen(box.download_url("/tmp/x")).read().decode())
    box.commands.run("python3 -m http.server 8000 --bind 127.0.0.1", background=True, cwd="/tmp")
    host = box.get_host(8000)
    with httpx.Client(http2=True) as web:
        for _ in range(100):
            answer = web.get(f"https://{host}/x")
            if answer.status_code == 200:
                break
    print(answer.http_version, answer.text)
"""


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_the_sdk_needs_a_domain_a_key_and_the_authority(secured: Instance, version: str) -> None:
    """Create, commands, files, signed URLs and a server on loopback, all by the default https names."""
    shown = run_python(secured, SDK, E2B_HTTP_VERSION=version)
    assert shown.splitlines() == ["hello", "content", "content", "HTTP/2 content"]


FLOOD = """
import os
from e2b import Sandbox
with Sandbox.create(timeout=90, http_version=os.environ["E2B_HTTP_VERSION"]) as box:
    lines = []
    script = "import os\\nfor n in range(60000): os.write(1, b'%07d\\\\n' % n)"
    box.files.write("/tmp/flood.py", script)
    done = box.commands.run("python3 /tmp/flood.py", on_stdout=lines.append, timeout=80)
    assert done.stdout == "".join("%07d\\n" % n for n in range(60000)), len(done.stdout)
    assert "".join(lines) == done.stdout
    print(box.commands.run("echo alive").stdout.strip())
"""


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_sixty_thousand_small_lines_reach_the_sdk(secured: Instance, version: str) -> None:
    """Eight bytes each, over TLS: the client keeps its connection, and loses nothing."""
    assert run_python(secured, FLOOD, E2B_HTTP_VERSION=version) == "alive\n"


def test_the_javascript_client_too(secured: Instance) -> None:
    """npm's `e2b` with NODE_EXTRA_CA_CERTS, if this machine has it."""
    modules = os.environ.get("FIREBRICK_TEST_NODE_MODULES", "")
    if not modules or shutil.which("node") is None:
        pytest.skip("FIREBRICK_TEST_NODE_MODULES names no directory with npm's `e2b`")
    code = """
    const { Sandbox } = require(process.env.FIREBRICK_TEST_NODE_MODULES + "/e2b");
    (async () => {
      const box = await Sandbox.create({ timeoutMs: 60000 });
      try {
        console.log((await box.commands.run("echo hello")).stdout.trim());
        await box.commands.run("echo served > /tmp/x; python3 -m http.server 8000", { background: true, cwd: "/tmp" });
        let answer;
        for (let i = 0; i < 100; i++) {
          answer = await fetch("https://" + box.getHost(8000) + "/x");
          if (answer.status === 200) break;
        }
        console.log((await answer.text()).trim());
      } finally { await box.kill(); }
    })();
    """
    done = subprocess.run(
        ["node", "-e", code],
        env=client_env(secured) | {"FIREBRICK_TEST_NODE_MODULES": modules},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.stdout.split() == ["hello", "served"], done.stderr[-3000:]
