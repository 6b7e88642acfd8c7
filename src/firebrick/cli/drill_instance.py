"""The instance that `firebrick drill` breaks: an own data directory, own ports, own network, the user's templates."""

import asyncio
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_server
from typing import Any

import httpx

from firebrick.cli.drill_disk import free, small_disk
from firebrick.config import Config, load_config
from firebrick.linux.process import ProcessRef
from firebrick.model.errors import FirebrickError, Internal
from firebrick.supervisor.roles import SUPERVISOR, Health, Role, role_argv, running, statuses

SHARED = ("templates", "tools")
UP_TIMEOUT_S = 900
PATIENCE_S = 90.0
POLL_S = 0.1
PRECIOUS = "/home/user/precious"
CANARY = "while true; do date +%s%N > /tmp/beat; sleep 0.2; done"


class Lost(FirebrickError):
    """A promise did not hold after a fault."""


class NotOffered(FirebrickError):
    """The operation does not work here even without a fault, so nothing can be said of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """Damage that the drill itself does at a step. `judge` looks at what the operation answered meanwhile, None being
    no answer, and raises Lost; `undo` is idempotent."""

    act: Callable[[], object]
    judge: Callable[[httpx.Response | None], None]
    undo: Callable[[], object]


class Drilled:
    """One instance. A canary runs in it all the time: it must live through every fault."""

    def __init__(self, data_dir: Path, env: dict[str, str], ports: tuple[int, int]) -> None:
        self.data_dir = data_dir
        self.api_port, self.edge_port = ports
        self._env = env
        self._config = load_config(env)
        self._fail_file = Path(env["FIREBRICK_DIE_AT_FILE_FOR_TEST_PURPOSES_ONLY"])
        self._key = ""
        self._canary = ""
        self._canary_box: Any = None
        self._pool = ThreadPoolExecutor(2)

    @property
    def _sdk(self) -> dict[str, Any]:
        urls = {"api_url": f"http://127.0.0.1:{self.api_port}", "sandbox_url": f"http://127.0.0.1:{self.edge_port}"}
        return {"api_key": self._key, **urls}

    def up(self) -> None:
        done = self.firebrick("up", "--detach")
        if done.returncode != 0:
            raise Internal(f"The drill's own instance does not come up: {(done.stdout + done.stderr)[-600:]}")
        self._key = json.loads((self.data_dir / "credentials.json").read_text())["api_key"]

    def firebrick(self, *args: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "firebrick.cli", *args]
        return subprocess.run(argv, env=self._env, capture_output=True, text=True, timeout=UP_TIMEOUT_S)

    def pid(self, role: str) -> int:
        """Of a living process of this instance, checked by its start time: a reused pid is somebody else's."""
        ref = ProcessRef(**json.loads((self.data_dir / "run" / f"{role}.json").read_text()))
        if not ref.is_alive():
            raise Lost(f"the {role} process of the drill's instance does not run")
        return ref.pid

    def api(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"X-API-Key": self._key} | options.pop("headers", {})
        with httpx.Client(base_url=self._sdk["api_url"], trust_env=False, timeout=70) as client:
            return client.request(method, path, headers=headers, **options)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def operate(
        self, operation: str, *, at: str = "", role: str = "control", strike: Strike | None = None
    ) -> str:  # fmt: skip
        """Do one operation, with a process dying at a step, or with `strike` done there; do it again until it works;
        then nothing may be lost."""
        self._prepare_canary()
        attempt = getattr(self, f"_do_{operation}")
        subject = "" if operation == "create" else self.new_sandbox()
        if operation == "resume" and not self.worked(self._do_pause(subject)):
            raise NotOffered("pausing is not offered by this node")
        struck = self._pool.submit(self._strike_when_reached, strike) if strike else None
        if at:
            self._fail_file.write_text(f"{at} {'wait' if strike else self.pid(role)}")
        try:
            answer = self._try(attempt, subject)
            # The second half of a kill or a pause is done behind the answer.
            self._wait(lambda: not self._fail_file.exists(), f"the step {at} was never reached", is_offer=True)
            if struck is not None and strike is not None:
                struck.result(PATIENCE_S)
                strike.judge(answer)
                strike.undo()
            self._wait(self._is_well, "the instance did not become healthy again")
            self._wait(lambda: self.worked(self._try(attempt, subject)), f"{operation} does not work when tried again")
            self._check_canary()
        finally:
            self._fail_file.unlink(missing_ok=True)
            if strike is not None:
                strike.undo()
            self._key_of_create = ""
            self._wait(self._clean, "not everything could be ended")
        self._wait(self._is_settled, "rows, reservations and machines do not agree")
        return ""

    _key_of_create = ""

    def _strike_when_reached(self, strike: "Strike") -> None:
        mark = self._fail_file.with_suffix(".reached")
        try:
            self._wait(mark.exists, "the step was never reached", is_offer=True)
            strike.act()
        finally:
            mark.unlink(missing_ok=True)

    def _do_create(self, subject: str) -> httpx.Response:
        self._key_of_create = self._key_of_create or secrets.token_hex(8)
        body = {"templateID": "base", "timeout": 600}
        return self.api("POST", "/v2/sandboxes", json=body, headers={"Idempotency-Key": self._key_of_create})

    def _do_kill(self, subject: str) -> httpx.Response:
        return self.api("DELETE", f"/sandboxes/{subject}")

    def _do_pause(self, subject: str) -> httpx.Response:
        return self.api("POST", f"/sandboxes/{subject}/pause")

    def _do_resume(self, subject: str) -> httpx.Response:
        return self.api("POST", f"/v2/sandboxes/{subject}/connect", json={"timeout": 600})

    def _do_snapshot(self, subject: str) -> httpx.Response:
        return self.api("POST", f"/sandboxes/{subject}/snapshots", json={})

    def _do_fork(self, subject: str) -> httpx.Response:
        return self.api("POST", f"/sandboxes/{subject}/fork", json={"timeout": 600})

    def worked(self, answer: httpx.Response | None) -> bool:
        """Also 404 for a kill and 409 for a pause: the first try has done it."""
        if answer is None:
            return False
        is_repeat = (answer.request.method, answer.status_code) in (("DELETE", 404), ("POST", 409))
        if answer.request.url.path.endswith("/fork") and answer.is_success:
            return all("sandbox" in result for result in answer.json())
        return answer.is_success or (is_repeat and "creat" not in answer.text)

    def _try(self, attempt: Any, subject: str) -> httpx.Response | None:
        try:
            answer: httpx.Response = attempt(subject)
        except httpx.HTTPError:
            return None
        if answer.status_code == 501:
            raise NotOffered(str(answer.json()["message"]))
        return answer

    def try_create_in_background(self) -> "Future[httpx.Response | None]":
        return self._pool.submit(self._try, self._do_create, "")

    def new_sandbox(self) -> str:
        answer = self.api("POST", "/v2/sandboxes", json={"templateID": "base", "timeout": 3600})
        if not answer.is_success:
            raise Lost(f"no sandbox can be created: {answer.text[:200]}")
        return str(answer.json()["sandboxID"])

    def _prepare_canary(self) -> None:
        if not self._canary:
            from e2b import Sandbox

            self._canary = self.new_sandbox()
            box = self._canary_box = Sandbox.connect(self._canary, timeout=3600, **self._sdk)
            box.commands.run(CANARY, background=True, timeout=0)
            box.files.write(PRECIOUS, "kept")

    def reboot(self) -> None:
        """Stop the roles as a power cut does, let the node's own tool do to this instance what a reboot does, and bring
        it up again. Only processes that its own pid files name are ended here."""
        for role in (SUPERVISOR, *Role):
            ref = running(self._config, role)
            if ref is not None:
                ref.kill()
                self._wait(lambda ref=ref: not ref.is_alive(), f"the {role} process does not end")
        argv = [*role_argv(Role.NODE), "--lose-boot"]
        done = subprocess.run(argv, env=self._env, capture_output=True, text=True, timeout=UP_TIMEOUT_S)
        if done.returncode != 0:
            raise Internal(f"The reboot could not be simulated: {(done.stdout + done.stderr)[-600:]}")
        shutil.rmtree(self._config.run_dir)
        self.up()
        self._canary = ""

    def write(self, sandbox_id: str, text: str) -> None:
        """Into a file of a sandbox, which is resumed if it must be."""
        self._box(sandbox_id).files.write(PRECIOUS, text)

    def read(self, sandbox_id: str) -> str:
        return str(self._box(sandbox_id).files.read(PRECIOUS))

    def pause(self, sandbox_id: str, *, memory: bool) -> None:
        """Raises NotOffered, Lost."""
        answer = self.api("POST", f"/sandboxes/{sandbox_id}/pause", json={"memory": memory})
        if answer.status_code == 501:
            raise NotOffered(str(answer.json()["message"]))
        if not answer.is_success:
            raise Lost(f"it cannot be paused: {answer.text[:200]}")

    def wait_ended(self, sandbox_id: str) -> dict[str, Any]:
        """Why it ended, as the API tells it."""
        self._wait(lambda: self.api("GET", f"/sandboxes/{sandbox_id}").status_code == 404, "it is not told as ended")
        found: dict[str, Any] = self.api("GET", f"/sandboxes/{sandbox_id}/why").json()
        return found

    @property
    def canary(self) -> str:
        """The canary's id; it is made if there is none."""
        self._prepare_canary()
        return self._canary

    def _box(self, sandbox_id: str) -> Any:
        from e2b import Sandbox

        return Sandbox.connect(sandbox_id, timeout=3600, **self._sdk)

    def ask_canary(self) -> None:
        """It can be reached, its file read and a command run in it, whatever the instance suffers from just now."""
        # NOTE: not connected to anew: that sets its timeout, which is a write to the store.
        box = self._canary_box
        if box.commands.run(f"cat {PRECIOUS}").stdout != "kept":
            raise Lost("the canary's file is not as it was written")

    def _check_canary(self) -> None:
        from e2b import Sandbox

        box = Sandbox.connect(self._canary, timeout=3600, **self._sdk)
        if box.files.read(PRECIOUS) != "kept":
            raise Lost("the canary's file is not as it was written")
        first = box.files.read("/tmp/beat")
        self._wait(lambda: box.files.read("/tmp/beat") != first, "the canary's process does not go on")

    def _listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api("GET", "/v2/sandboxes").json()
        return found

    def _clean(self) -> bool:
        try:
            for item in self._listed():
                if item["sandboxID"] != self._canary:
                    self.api("DELETE", f"/sandboxes/{item['sandboxID']}")
            for item in self.api("GET", "/snapshots").json() if self.api("GET", "/snapshots").is_success else []:
                self.api("DELETE", f"/templates/{item['snapshotID'].replace('/', '%2F')}")
            return {item["sandboxID"] for item in self._listed()} <= {self._canary}
        except httpx.HTTPError:
            return False

    def _is_well(self) -> bool:
        # Asked here and not by `firebrick status`: starting Python for each look took longer than all the rest.
        found = asyncio.run(statuses(self._config))
        return all(item.health is Health.HEALTHY for item in found)

    def _is_settled(self) -> bool:
        """The node holds the canary and warm machines, and nothing is reserved for anybody else."""
        token = (self.data_dir / "admin-token").read_text().strip()
        try:
            node = self.api("GET", "/nodes", headers={"X-Admin-Token": token}).json()[0]
        except (httpx.HTTPError, KeyError):
            return False
        return bool(node["sandboxCount"] == 1 and node["status"] == "ready" and node["metrics"]["allocatedCPU"] <= 2)

    def _wait(self, condition: Any, what: str, *, is_offer: bool = False) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise (NotOffered if is_offer else Lost)(what)
            time.sleep(POLL_S)

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def drilled_instance(config: Config, runtime: str) -> Iterator[Drilled]:
    """Bring it up, and take it down with everything it made. Raises Internal."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="firebrick-drill-", dir="/var/tmp"))
        stack.callback(directory.rmdir)
        # Mapped root of a container must pass through to its disk.
        directory.chmod(0o711)
        yield from _on_disk(config, runtime, stack.enter_context(small_disk(directory)))


def _on_disk(config: Config, runtime: str, data_dir: Path) -> Iterator[Drilled]:
    for name in SHARED:
        (config.data_dir / name).mkdir(parents=True, exist_ok=True)
        (data_dir / name).symlink_to((config.data_dir / name).resolve())
    sockets = [create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = (sockets[0].getsockname()[1], sockets[1].getsockname()[1])
    for item in sockets:
        item.close()
    chosen = {
        "data_dir": data_dir, "api_port": ports[0], "edge_port": ports[1], "runtime": runtime, "slot_count": 16,
        "network_prefix": _free_prefix(), "die_at_file_for_test_purposes_only": data_dir / "die-at",
        "warm_count": 0, "grace_bin_s": 0, "longest_restart_delay_s": 0.2,
    }  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "FIREBRICK_"))}
    env |= {f"FIREBRICK_{name.upper()}": str(value) for name, value in chosen.items()}
    drilled = Drilled(data_dir, env, ports)
    try:
        drilled.up()
        yield drilled
    finally:
        drilled.close()
        free(data_dir)
        done = drilled.firebrick("down")
        if done.returncode != 0:
            raise Internal(f"The drill's own instance in {data_dir} does not end: {(done.stdout + done.stderr)[-600:]}")


def _free_prefix() -> str:
    # Any of a thousand: the slot pool refuses one whose addresses are taken, with its own words.
    return f"10.{random.randrange(64, 128)}.{16 * random.randrange(16)}.0/20"
