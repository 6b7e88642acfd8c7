"""Network options over the API: what is told, what the edge and the node are told, and changing it while it runs."""

import httpx
import pytest

from firebrick.model.egress import CLOSED, OPEN, egress_of
from firebrick.model.ids import SandboxId
from tests.sim.control.test_api import create
from tests.support.control import Running

OPTIONS = {
    "allowPublicTraffic": False,
    "allowOut": ["8.8.8.8"],
    "denyOut": ["0.0.0.0/0"],
    "maskRequestHost": "localhost:${PORT}",
    "httpsPorts": [8443],
}


async def test_options_are_told_back_and_reach_node_and_edge(client: httpx.AsyncClient, running: Running) -> None:
    """The traffic token stands in the answer and in the route; the same after connect."""
    made = await create(client, network=OPTIONS)
    sandbox_id = SandboxId(made["sandboxID"])
    token = made["trafficAccessToken"]
    assert len(token) == 64
    assert token != made["envdAccessToken"]
    assert running.world.node.requests[sandbox_id].egress == egress_of(None, OPTIONS)
    route = running.world.catalog.routes[sandbox_id]
    assert (route.traffic_token, route.mask_host, route.https_ports) == (token, "localhost:${PORT}", {8443})
    detail = (await client.get(f"/sandboxes/{sandbox_id}")).json()
    assert detail["network"] == OPTIONS
    again = (await client.post(f"/v2/sandboxes/{sandbox_id}/connect")).json()
    assert again["trafficAccessToken"] == token


async def test_domains_are_told_back_as_they_were_asked(client: httpx.AsyncClient, running: Running) -> None:
    """At create and in an update, which needs all else denied; the node gets them in their one spelling."""
    options = {"allowOut": ["Example.COM", "*.bücher.test", "1.2.3.4"], "denyOut": ["0.0.0.0/0"]}
    sandbox_id = SandboxId((await create(client, network=options))["sandboxID"])
    path = f"/sandboxes/{sandbox_id}"
    assert (await client.get(path)).json()["network"] == options
    egress = running.world.node.requests[sandbox_id].egress
    assert (egress.names, egress.default_dns) == (("example.com", "*.xn--bcher-kva.test"), True)
    refused = await client.put(f"{path}/network", json={"allowOut": ["other.test"]})
    assert (refused.status_code, "ALL_TRAFFIC" in refused.json()["message"]) == (400, True)
    refused = await client.put(f"{path}/network", json={"denyOut": ["other.test"]})
    assert (refused.status_code, refused.json()["message"]) == (400, "invalid denied CIDR other.test")
    changed = await client.put(f"{path}/network", json={"allowOut": ["other.test"], "allow_internet_access": False})
    assert changed.status_code == 204
    assert running.world.node.egress[sandbox_id].names == ("other.test",)
    assert (await client.get(path)).json()["network"] == {"allowOut": ["other.test"]}


async def test_a_public_sandbox_has_no_traffic_token(client: httpx.AsyncClient, running: Running) -> None:
    """The field is there and null, as E2B has it."""
    made = await create(client)
    assert made["trafficAccessToken"] is None
    assert running.world.catalog.routes[SandboxId(made["sandboxID"])].traffic_token == ""


async def test_an_update_replaces_every_rule_and_keeps_the_ports_options(
    client: httpx.AsyncClient, running: Running
) -> None:
    """The node has the new rules when it is answered; an empty update opens everything."""
    sandbox_id = SandboxId((await create(client, network=OPTIONS, allow_internet_access=True))["sandboxID"])
    path = f"/sandboxes/{sandbox_id}/network"
    assert (await client.put(path, json={"allow_internet_access": False})).status_code == 204
    assert running.world.node.egress[sandbox_id] == CLOSED
    detail = (await client.get(f"/sandboxes/{sandbox_id}")).json()
    assert detail["allowInternetAccess"] is False
    assert set(detail["network"]) == {"allowPublicTraffic", "maskRequestHost", "httpsPorts"}
    assert (await client.put(path, json={})).status_code == 204
    assert running.world.node.egress[sandbox_id] == OPEN
    assert (await client.get(f"/sandboxes/{sandbox_id}")).json()["allowInternetAccess"] is None


async def test_a_refused_update_changes_nothing(client: httpx.AsyncClient, running: Running) -> None:
    """Nonsense, an unknown sandbox, a paused one, a node that is away."""
    sandbox_id = (await create(client))["sandboxID"]
    path = f"/sandboxes/{sandbox_id}/network"
    assert (await client.put(path, json={"denyOut": ["x"]})).json()["message"] == "invalid denied CIDR x"
    assert (await client.put(f"/sandboxes/i{'0' * 20}/network", json={})).status_code == 404
    running.world.node.go_down()
    assert (await client.put(path, json={"denyOut": ["1.2.3.4"]})).status_code == 503
    running.world.node.come_back()
    assert "network" not in (await client.get(f"/sandboxes/{sandbox_id}")).json()
    assert (await client.post(f"/sandboxes/{sandbox_id}/pause")).status_code == 204
    refused = await client.put(path, json={})
    assert (refused.status_code, "resume it" in refused.json()["message"]) == (409, True)
    assert not running.world.node.egress


@pytest.mark.parametrize("body", [{"network": {"allowPublicTraffic": False}, "secure": False}])
async def test_an_open_agent_cannot_be_private(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    """In E2B's words."""
    refused = await client.post("/sandboxes", json={"templateID": "base", **body})
    assert refused.status_code == 400
    assert refused.json()["message"].startswith("You cannot create a sandbox without public access unless")
