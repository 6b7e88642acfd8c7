"""The host's own way to a microVM's guest agent, with the real agent inside: it needs nothing of the guest's network,
and leads nowhere from inside."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from firebrick.builder.agent_image import agent_argv, agent_env, build_agent_image
from firebrick.guestlink.base import AGENT_PORT, GuestInit, GuestSilent
from firebrick.guestlink.http import HttpGuestLink
from firebrick.linux.process import run
from firebrick.model.ids import SandboxId, TemplateId
from firebrick.model.machine import RuntimeName
from firebrick.node.machine import LINE_VARIABLE
from firebrick.runtimes.base import AgentLine, Freezer, MachineSpec
from tests.support.instance import CACHE
from tests.support.lab import call_in, socket_in
from tests.support.runtime_bench import INSIDE, RuntimeBench
from tests.support.wait import SLOWNESS, wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_kvm]

TOKEN = "t0ken"
READY_S, ASKED_S = 45.0 * SLOWNESS, 10.0 * SLOWNESS
SETTINGS = GuestInit(
    sandbox_id=SandboxId("i1"), template_id=TemplateId("base"), timestamp=datetime.now(UTC), hostname="sandbox",
)  # fmt: skip
HELD_COUNT = 100


@pytest.fixture
def microvms(bench: RuntimeBench) -> RuntimeBench:
    if bench.name is not RuntimeName.FIRECRACKER:
        pytest.skip("only microVMs have a line")
    return bench


def link_to(bench: RuntimeBench, spec: MachineSpec) -> HttpGuestLink:
    line = cast(AgentLine, bench.runtime)
    return HttpGuestLink("192.0.2.1", TOKEN, dial=lambda: line.dial(spec.machine_id, AGENT_PORT))


@asynccontextmanager
async def agent(bench: RuntimeBench) -> AsyncIterator[tuple[MachineSpec, HttpGuestLink]]:
    """A machine with the real agent as its first program, and a link that knows no address of it."""
    directory = CACHE / "tools" / "agent"
    await build_agent_image(directory, mirror=None)
    spec = await bench.spec(*agent_argv(), env={**agent_env(TOKEN), LINE_VARIABLE: str(AGENT_PORT)})
    spec = replace(spec, agent_dir=directory)
    await bench.runtime.start(spec)
    link = link_to(bench, spec)
    try:
        await link.wait_ready(timeout_s=READY_S)
        yield spec, link
    finally:
        link.close()


async def ask_all(link: HttpGuestLink) -> None:
    """Each of the host's requests, and that they are answered."""
    await link.init(SETTINGS)
    await link.flush(timeout_s=ASKED_S)
    entries, _ = await link.logs(0, timeout_s=ASKED_S)
    assert isinstance(entries, tuple)


async def test_control_needs_no_network(microvms: RuntimeBench) -> None:
    """The guest's link is down: its address is silent, and the host is answered."""
    async with agent(microvms) as (spec, link):
        outer = spec.netns.with_name(f"{spec.netns.name}-out")
        await run(["ip", "-n", outer.name, "link", "set", "out0", "down"])
        with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's to say
            await asyncio.to_thread(call_in, outer, _connect)
        await ask_all(link)


def _connect() -> None:
    socket.create_connection((INSIDE, AGENT_PORT), timeout=2).close()


async def test_control_is_answered_in_a_flood(microvms: RuntimeBench) -> None:
    """Packets come to the guest as fast as its place takes them, and somebody holds connections to its agent: the host,
    on a new line each time, is answered."""
    async with agent(microvms) as (spec, link):
        outer = spec.netns.with_name(f"{spec.netns.name}-out")
        loop = asyncio.get_running_loop()
        is_over = threading.Event()
        with contextlib.ExitStack() as held:
            for _ in range(HELD_COUNT):
                stream = held.enter_context(socket_in(outer))
                await loop.sock_connect(stream, (INSIDE, AGENT_PORT))
            packets = held.enter_context(socket_in(outer, socket.SOCK_DGRAM))
            flooding = asyncio.create_task(asyncio.to_thread(_flood, packets, is_over))
            try:
                for _ in range(3):
                    await ask_all(link)
                    link.close()
            finally:
                is_over.set()
                assert await flooding > 0


def _flood(packets: socket.socket, is_over: threading.Event) -> int:
    count = 0
    while not is_over.is_set():
        with contextlib.suppress(BlockingIOError):
            count += packets.sendto(bytes(1400), (INSIDE, AGENT_PORT)) > 0
    return count


async def test_the_line_outlives_pauses_and_drivers(microvms: RuntimeBench) -> None:
    """Paused it is silent and breaks nothing; resumed, and by the next driver, it is answered."""
    async with agent(microvms) as (spec, link):
        await ask_all(link)
        freezer = cast(Freezer, microvms.runtime)
        await freezer.freeze(spec.machine_id)
        with pytest.raises(GuestSilent):
            await link.logs(0, timeout_s=0.5)
        await freezer.thaw(spec.machine_id)
        await ask_all(link)
        restarted = microvms.restart()
        assert await restarted.recover() == (spec.machine_id,)
        second = link_to(microvms, spec)
        await ask_all(second)
        second.close()


async def test_the_line_is_dialled_anew_where_memory_goes_on(microvms: RuntimeBench) -> None:
    """A device that was saved with its connections is reset: the agent, which listens on, is reached in the machine
    that goes on, over a line of its own, and in the one that was saved."""
    async with agent(microvms) as (spec, link):
        await ask_all(link)
        save = await microvms.saved(spec)
        second = replace(
            await microvms.spec(*spec.argv, kept_disk=save.with_suffix(".disk"), memory=save), agent_dir=spec.agent_dir
        )
        await microvms.runtime.start(second)
        anew = link_to(microvms, second)
        await anew.wait_ready(timeout_s=READY_S)
        await ask_all(anew)
        anew.close()
        await cast(Freezer, microvms.runtime).thaw(spec.machine_id)
        await ask_all(link)


async def test_no_way_leads_from_the_guest_to_the_host(microvms: RuntimeBench) -> None:
    """Whatever port of the host's vsock a guest asks for, and on whichever address: nobody is there, and in the jail
    there is no socket that a port could lead to."""
    spec = await microvms.serving()
    script = """
import socket, threading
def ask(cid, port):
    own = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        own.connect((cid, port))
        print("reached", cid, port)
    except OSError:
        pass
ports = (1, 22, 53, 80, 443, 1024, 2024, 3000, 5001, 49983, 4294967294)
asking = [threading.Thread(target=ask, args=(cid, port)) for cid in (0, 1, 2, 3, 4) for port in ports]
for thread in asking: thread.start()
for thread in asking: thread.join()
print("asked", len(asking))
"""
    status, said = await microvms.run(spec, f"python3 - <<'END'\n{script}\nEND")
    assert (status, said) == (0, "asked 55\n")
    jail = next(microvms.directory.rglob(f"jails/firecracker/{spec.machine_id}/root"))
    assert [name for name in os.listdir(jail) if name.startswith("vsock.sock")] == ["vsock.sock"]
    assert await microvms.answers(spec)


async def test_nobody_listens_where_no_agent_does(microvms: RuntimeBench) -> None:
    """A port that nothing inside listens on is refused, and not left hanging."""
    spec = await microvms.serving()
    line = cast(AgentLine, microvms.runtime)

    async def is_refused() -> bool:
        try:
            (await line.dial(spec.machine_id, 1)).close()
        except OSError as exc:
            return isinstance(exc, ConnectionRefusedError)
        return False

    assert await wait_for(is_refused)
    assert Path(f"/proc/{(await microvms.runtime.inspect(spec.machine_id)).pid}").exists()
