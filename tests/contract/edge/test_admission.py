"""Who is let in, how a sandbox's own options change its ports, and what wakes a paused one."""

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.catalog.base import Route, RouteState
from firebrick.edge.visit import EdgeLimits
from firebrick.guestlink.base import AGENT_PORT
from firebrick.model.errors import Conflict, DeadlineExceeded, FirebrickError, Forbidden, NotFound, Unavailable
from firebrick.model.ids import MachineId, SandboxId
from tests.contract.edge.rig import Request, Rig, Stub, get, open_rig, say_ok
from tests.support.certificates import self_signed
from tests.support.wait import wait_for

TOKEN = "s3cret"


async def echo_headers(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    body = "\n".join(f"{name}: {value}" for name, value in sorted(request.headers.items())).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


async def with_token(rig: Rig) -> tuple[Stub, Route]:
    stub, route = await rig.sandbox(echo_headers)
    route = replace(route, traffic_token=TOKEN)
    await rig.catalog.publish(route)
    return stub, route


async def test_a_traffic_token_is_demanded_and_kept_from_the_sandbox(rig: Rig) -> None:
    """Without it and with another one 403 in E2B's words; with it the request passes, without the header."""
    stub, route = await with_token(rig)
    missing = await rig.get(route, stub.port)
    assert (missing.status, missing.json()) == (
        403,
        {
            "code": 403,
            "message": "Sandbox is secured with traffic access token. "
            "Token header 'e2b-traffic-access-token' is missing",
            "sandboxId": route.sandbox_id,
            "port": stub.port,
        },
    )
    wrong = await rig.get(route, stub.port, extra="e2b-traffic-access-token: s3creT\r\n")
    assert wrong.status == 403
    assert "Provided token in header 'e2b-traffic-access-token' is invalid" in wrong.json()["message"]
    assert not stub.requests
    good = await rig.get(route, stub.port, extra=f"E2B-Traffic-Access-Token: {TOKEN}\r\n")
    assert good.status == 200
    assert b"traffic" not in good.body


async def test_a_browser_without_the_token_sees_a_page(rig: Rig) -> None:
    """Titled as E2B's tests look for it."""
    stub, route = await with_token(rig)
    page = await rig.get(route, stub.port, extra="Accept: text/html\r\n")
    assert b"Missing Traffic Access Token" in page.body
    assert route.sandbox_id.encode() in page.body


async def test_the_agents_port_needs_no_traffic_token(rig: Rig) -> None:
    """It has a token of its own."""
    stub, route = await rig.sandbox(say_ok, port=AGENT_PORT)
    await rig.catalog.publish(replace(route, traffic_token=TOKEN, mask_host="never.test"))
    assert (await rig.get(route, stub.port, "/files")).status == 200
    assert stub.requests[-1].headers["host"] == "127.0.0.1"


async def test_a_host_mask_reaches_user_ports(rig: Rig) -> None:
    """With the port filled in."""
    stub, route = await rig.sandbox(echo_headers)
    await rig.catalog.publish(replace(route, mask_host="localhost:${PORT}"))
    answer = await rig.get(route, stub.port)
    assert f"host: localhost:{stub.port}".encode() in answer.body


async def test_https_ports_are_spoken_to_in_tls(rig: Rig, tmp_path: Path) -> None:
    """Whatever certificate the server shows; the connection is kept for the next request."""
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    stub = Stub(say_ok, "127.7.7.7")
    stub.server = await asyncio.start_server(stub._serve, stub.address, 0, ssl=context)
    stub.port = stub.server.sockets[0].getsockname()[1]
    rig.stubs.append(stub)
    route = await rig.publish(stub)
    await rig.catalog.publish(replace(route, https_ports=frozenset((stub.port,))))
    body = b"x" * 1_000_000
    for _ in range(2):
        answer = await rig.request(get(route, stub.port, method="POST", extra="Content-Length: 1000000\r\n") + body)
        assert answer.body == b"POST / HTTP/1.1 1000000"
    assert stub.connection_count == 1


class Agent:
    """The guest agent's part of reaching loopback ports: a way to `inner`, or 502 when that is None."""

    def __init__(self) -> None:
        self.inner: Stub | None = None
        self.asked: list[str] = []

    async def __call__(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(request.path)
        if self.inner is None:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: firebrick-tcp\r\n\r\n")
        inner_reader, inner_writer = await asyncio.open_connection(self.inner.address, self.inner.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    sink.write(data)
            except ConnectionError:
                pass
            sink.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, inner_writer))
            tasks.create_task(pump(inner_reader, writer))


async def test_a_server_on_loopback_only_is_reached_through_the_agent(rig: Rig) -> None:
    """Asked for once the port refuses; remembered for the next connection; the agent is told no secret."""
    agent = Agent()
    outer, route = await rig.sandbox(agent, port=AGENT_PORT)
    agent.inner = await rig.stub(say_ok)
    for _ in range(3):
        assert (await rig.get(route, 8000, "/x", extra="Connection: close\r\n")).body == b"GET /x HTTP/1.1 0"
    assert set(agent.asked) == {"/firebrick/port/8000"}
    assert {name for request in outer.requests for name in request.headers} == {"host", "connection", "upgrade"}


async def test_a_server_that_moves_from_loopback_to_the_address_is_found(rig: Rig) -> None:
    """The memory of a port ends when the agent finds nothing there any more; then the address is tried again."""
    agent = Agent()
    outer, route = await rig.sandbox(agent, port=AGENT_PORT)
    agent.inner = await rig.stub(say_ok)
    port = agent.inner.port
    assert (await rig.get(route, port, extra="Connection: close\r\n")).status == 200
    agent.inner = None
    await wait_for(lambda: outer.open_count == 0)
    assert (await rig.get(route, port)).json()["message"] == "The sandbox is running but port is not open"
    await rig.stub(say_ok, port=port, address=outer.address)
    assert (await rig.get(route, port)).status == 200


def paused(route: Route) -> Route:
    return replace(route, machine_id=MachineId(""), address="", state=RouteState.PAUSED)


async def test_traffic_wakes_a_paused_sandbox_once_for_all(rig: Rig) -> None:
    """Requests that come meanwhile wait and are served; the control plane is asked once."""
    stub, route = await rig.sandbox(say_ok)
    await rig.catalog.publish(paused(route))
    asked: list[SandboxId] = []
    go = asyncio.Event()

    async def resume(sandbox_id: SandboxId) -> None:
        asked.append(sandbox_id)
        await go.wait()
        await rig.catalog.publish(route)

    rig.catalog.waker = resume
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(rig.get(route, stub.port, f"/{number}")) for number in range(20)]
        await wait_for(lambda: rig.edge.stats.connection_count == 20 and asked)
        assert not stub.requests
        go.set()
    assert [answer.result().status for answer in answers] == [200] * 20
    assert asked == [route.sandbox_id]


async def test_who_lacks_the_traffic_token_wakes_nothing(rig: Rig) -> None:
    """The check comes first."""
    stub, route = await rig.sandbox(say_ok)
    await rig.catalog.publish(paused(replace(route, traffic_token=TOKEN)))

    async def resume(_: SandboxId) -> None:
        raise AssertionError

    rig.catalog.waker = resume
    assert (await rig.get(route, stub.port)).status == 403


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (NotFound("gone"), 502, "The sandbox was not found"),
        (Forbidden("the team is blocked"), 403, "the team is blocked"),
        (Conflict("it is being paused"), 409, "it is being paused"),
        (Unavailable("no node answers"), 503, "no node answers"),
        (DeadlineExceeded("too slow"), 504, "too slow"),
    ],
)
async def test_a_refused_wake_is_told(rig: Rig, error: FirebrickError, status: int, text: str) -> None:
    """With the control plane's own reason, in a status of its own."""
    stub, route = await rig.sandbox(say_ok)
    await rig.catalog.publish(paused(route))

    async def refuse(_: SandboxId) -> None:
        raise error

    rig.catalog.waker = refuse
    answer = await rig.get(route, stub.port)
    assert (answer.status, text in answer.json()["message"]) == (status, True)


async def test_a_client_that_leaves_does_not_stop_the_wake() -> None:
    """What was begun is finished for the next one; and a second above the bound is refused."""
    async with open_rig(EdgeLimits(per_sandbox_count=1)) as rig:
        stub, route = await rig.sandbox(say_ok)
        await rig.catalog.publish(paused(route))
        go, woken = asyncio.Event(), asyncio.Event()

        async def resume(_: SandboxId) -> None:
            await go.wait()
            await rig.catalog.publish(route)
            woken.set()

        rig.catalog.waker = resume
        impatient = await rig.client()
        await impatient.send(get(route, stub.port))
        await wait_for(lambda: rig.edge.stats.connection_count == 1)
        assert (await rig.get(route, stub.port)).status in (429, 200)
        impatient.close()
        go.set()
        await woken.wait()
        await wait_for(lambda: not rig.edge.stats.exchange_count)
        assert (await rig.get(route, stub.port)).status == 200


async def test_the_api_has_a_name_below_the_domain() -> None:
    """`api.<domain>` is the control plane; when it is away that is said, and not that a sandbox is missing."""
    stub = await Stub(say_ok, "127.3.3.3").start()
    async with open_rig(api=(stub.address, stub.port)) as rig:
        raw = b"GET /sandboxes HTTP/1.1\r\nHost: api.sandbox.test:3002\r\n\r\n"
        assert (await rig.request(raw)).body == b"GET /sandboxes HTTP/1.1 0"
        await stub.close()
        await wait_for(lambda: stub.open_count == 0)
        away = await rig.request(raw)
        assert (away.status, away.json()["message"]) == (
            503,
            "The control plane does not answer at this moment; try again",
        )
