"""Domains in `allow_out`, by the official SDK, on a machine of its own with an internet of its own beside it."""

import asyncio
import os
import signal
import socket
import ssl
import threading
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from e2b import ALL_TRAFFIC, CommandExitException, Sandbox
from e2b.sandbox_sync.commands.command_handle import CommandResult

from firebrick.linux import netns
from firebrick.network.layout import instance_name
from tests.support.certificates import self_signed
from tests.support.instance import Instance, fill_cache, instance
from tests.support.lab import PUBLIC_ADDRESS, Lab, lab_host, listen_in, socket_in
from tests.support.name_server import answering, filters
from tests.support.runtimes import missing_runtime
from tests.support.wait import wait_for_sync

pytestmark = pytest.mark.timeout(600)
NAME_SERVER = "1.2.3.4"
NAMES = {"allowed.test": [PUBLIC_ADDRESS], "other.test": [PUBLIC_ADDRESS], "a.below.test": [PUBLIC_ADDRESS]}


class Internet:
    """A name server, and a web server with and without TLS that tells which host it was asked for."""

    def __init__(self, lab: Lab, certificate: tuple[Path, Path]) -> None:
        self._lab = lab
        self._dns = listen_in(lab.internet, NAME_SERVER, 53, socket.SOCK_DGRAM)
        self._plain = listen_in(lab.internet, PUBLIC_ADDRESS, 80)
        self._tls = listen_in(lab.internet, PUBLIC_ADDRESS, 443)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self._loop = asyncio.new_event_loop()
        self._done = asyncio.Event()
        self._forwards: list[asyncio.Server] = []
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()

    async def _serve(self) -> None:
        with answering(self._dns, NAMES):
            plain = await asyncio.start_server(self._answer, sock=self._plain)
            tls = await asyncio.start_server(self._answer, sock=self._tls, ssl=self._context)
            async with plain, tls:
                await self._done.wait()
        for server in self._forwards:
            server.close()
        self._dns.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            host = next(line for line in head.splitlines() if line.startswith("host:"))
            body = f"you asked for {host}"
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
            await writer.drain()

    def forward(self, listener: socket.socket, url: str) -> str:
        """Pass connections to `listener` on to that URL on the lab's host; the URL by which to reach it."""
        port = int(url.rpartition(":")[2])

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            made = socket_in(self._lab.host)
            try:
                await self._loop.sock_connect(made, ("127.0.0.1", port))
                there, back = await asyncio.open_connection(sock=made)
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(reader, back))
                    both.create_task(_copy(there, writer))
            except* OSError:
                made.close()

        self._run(asyncio.start_server(pass_on, sock=listener))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def _run(self, work: Coroutine[Any, Any, asyncio.Server]) -> None:
        self._forwards.append(asyncio.run_coroutine_threadsafe(work, self._loop).result())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module", params=["gvisor", "container"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance on one runtime whose host is a namespace with an internet beside it."""
    runtime: str = request.param
    if why := missing_runtime(runtime):
        pytest.skip(why)
    fill_cache()
    ours = netns.open_own()
    with ExitStack() as stack:
        stack.callback(os.close, ours)
        lab = stack.enter_context(lab_host())
        internet = Internet(lab, self_signed(tmp_path_factory.mktemp("tls")))
        stack.callback(internet.close)
        found = stack.enter_context(instance(runtime=runtime, dns_servers=NAME_SERVER, slot_count="4", warm_count="1"))
        # NOTE: the SDK keeps threads for all tests, and a thread stays in the namespace it was started in. So tests
        # live where they always do, and reach the lab's host through forwarded ports.
        stack.callback(netns.enter, lab.host)
        netns.enter(ours)
        urls = {
            name: internet.forward(listen_in(ours, "127.0.0.1", 0), found.env[name])
            for name in ("E2B_API_URL", "E2B_SANDBOX_URL")
        }
        yield replace(found, env=found.env | urls)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with closing(writer):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()


def curl(box: Sandbox, url: str) -> CommandResult | CommandExitException:
    try:
        return box.commands.run(f"curl --silent --show-error --insecure --max-time 20 {url}")
    except CommandExitException as exc:
        return exc


def refused_names(place: Instance, box: Sandbox) -> list[str]:
    logs = place.api("GET", f"/v2/sandboxes/{box.sandbox_id}/logs").json()["logs"]
    return [entry["fields"]["host"] for entry in logs if entry["fields"].get("source") == "network"]


def test_an_allowed_domain_is_reached_and_no_other(place: Instance) -> None:
    """HTTP and HTTPS by name, wildcards, nothing else by name or address; the owner's log names what was refused."""
    network = {"allow_out": ["Allowed.test", "*.below.test"], "deny_out": [ALL_TRAFFIC]}
    with Sandbox.create(timeout=120, network=network, **place.sdk) as box:
        for host in ("allowed.test", "a.below.test"):
            for scheme in ("http", "https"):
                assert curl(box, f"{scheme}://{host}/").stdout == f"you asked for host: {host}"
        for url in ("http://other.test", "https://other.test", f"http://{PUBLIC_ADDRESS}", f"https://{PUBLIC_ADDRESS}"):
            assert curl(box, url).exit_code in (35, 56)
        assert curl(box, "http://allowed.test:8080").exit_code == 7
        told = box.get_info().network
        assert told is not None
        assert told["allow_out"] == network["allow_out"]
        assert set(refused_names(place, box)) == {"other.test", PUBLIC_ADDRESS}

        box.update_network({"allow_out": ["other.test"], "deny_out": [ALL_TRAFFIC]})
        assert curl(box, "https://other.test").stdout == "you asked for host: other.test"
        assert curl(box, "https://allowed.test").exit_code == 35
        box.update_network({})
        assert curl(box, f"http://{PUBLIC_ADDRESS}").exit_code == 0


def test_rules_by_name_survive_kills_and_a_pause(place: Instance) -> None:
    """kill -9 of the filter, then of the node agent, then pause and resume with and without memory."""
    with Sandbox.create(
        timeout=300, network={"allow_out": ["allowed.test"], "deny_out": [ALL_TRAFFIC]}, **place.sdk
    ) as box:

        def holds() -> bool:
            return curl(box, "https://allowed.test").exit_code == 0 and curl(box, "https://other.test").exit_code == 35

        assert holds()
        (pid,) = filters(instance_name(place.data_dir))
        os.kill(pid, signal.SIGKILL)
        assert holds()
        os.kill(place.pids()["node"], signal.SIGKILL)
        wait_for_sync(lambda: place.health().get("node") == "healthy")
        wait_for_sync(holds)
        for keep_memory in (True, False):
            box.pause(keep_memory=keep_memory)
            box = Sandbox.connect(box.sandbox_id, timeout=300, **place.sdk)
            assert holds()
