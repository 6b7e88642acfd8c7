"""Teams, users, keys and quotas, through the API."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from firebrick.control.jwts import Jwts
from firebrick.control.tokens import ISSUER_SEED_NAME
from firebrick.model.errors import Unauthenticated
from tests.support.control import Running
from tests.support.manual_clock import ManualClock
from tests.support.owners import Api, open_api


@pytest.fixture
async def api(running: Running) -> AsyncIterator[Api]:
    """The API of a running control plane; every sandbox is ended afterwards."""
    found = open_api(running)
    async with found.http:
        yield found
        for row in await running.living():
            await running.control.sandboxes.kill_all(row.team_id)
            await running.wait_ended(row.sandbox_id)


async def test_a_key_is_shown_once_and_revoked_at_once(api: Api) -> None:
    """A new key opens its team; lists show its mask and last use, never the key; revoked, it opens nothing."""
    team_id, key = await api.new_team("acme")
    manager = api.admin | {"X-Team-ID": team_id}
    made = await api.ok("POST", "/api-keys", manager, json={"name": "ci"})
    mine = {"X-API-Key": made["key"]}
    assert await api.status("GET", "/v2/sandboxes", mine) == 200
    listed = sorted(await api.ok("GET", "/api-keys", manager), key=lambda item: str(item["name"]), reverse=True)
    assert [item["name"] for item in listed] == ["k", "ci"]
    assert made["key"] not in str(listed)
    mask = listed[1]["mask"]
    assert made["key"].startswith(mask["prefix"] + mask["maskedValuePrefix"])
    assert made["key"].endswith(mask["maskedValueSuffix"])
    assert len(made["key"]) == len(mask["prefix"]) + mask["valueLength"]
    assert listed[1]["lastUsed"] is not None
    assert listed[0]["lastUsed"] is None
    await api.ok("PATCH", f"/api-keys/{made['id']}", manager, json={"name": "ci 2"})
    await api.ok("DELETE", f"/api-keys/{made['id']}", manager)
    assert await api.status("GET", "/v2/sandboxes", mine) == 401
    assert await api.status("GET", "/v2/sandboxes", key) == 200
    assert await api.status("DELETE", f"/api-keys/{made['id']}", manager) == 404


async def test_a_key_cannot_breed_keys(api: Api) -> None:
    """An API key opens neither the list of keys nor the operator's endpoints, nor those of users."""
    _, key = await api.new_team("acme")
    for method, path in (("GET", "/api-keys"), ("POST", "/api-keys"), ("GET", "/teams"), ("GET", "/admin/teams")):
        assert await api.status(method, path, key, json={"name": "x"}) == 401


async def test_users_act_for_their_teams_only(api: Api) -> None:
    """A JWT opens each team its user is in, the default without a header; others answer as teams that are not."""
    first, _ = await api.new_team("first")
    second, _ = await api.new_team("second")
    foreign, _ = await api.new_team("foreign")
    user_id, bearer = await api.new_user("Ann@example.org", first, second)
    teams = await api.ok("GET", "/teams", bearer)
    assert [(item["teamID"], item["isDefault"]) for item in teams] == [(first, True), (second, False)]
    await api.ok("POST", "/v2/sandboxes", bearer | {"X-Team-ID": second}, json={"templateID": "base"})
    assert len(await api.ok("GET", "/v2/sandboxes", bearer | {"X-Team-ID": second})) == 1
    assert await api.ok("GET", "/v2/sandboxes", bearer) == []
    refused = [
        await api.http.get("/v2/sandboxes", headers=bearer | {"X-Team-ID": team}) for team in (foreign, "team_none")
    ]
    assert [answer.status_code for answer in refused] == [403, 403]
    assert refused[0].text == refused[1].text
    await api.ok("DELETE", f"/admin/teams/{second}/members/{user_id}", api.admin)
    assert await api.status("GET", "/v2/sandboxes", bearer | {"X-Team-ID": second}) == 403
    await api.ok("DELETE", f"/admin/users/{user_id}", api.admin)
    assert await api.status("GET", "/teams", bearer) == 401


async def test_access_tokens_of_the_older_kind(api: Api) -> None:
    """`sk_e2b_…` is shown once, acts for the default team, and is taken back at once, by its owner only."""
    team_id, _ = await api.new_team("acme")
    _, ann = await api.new_user("ann@example.org", team_id)
    _, bob = await api.new_user("bob@example.org", team_id)
    made = await api.ok("POST", "/access-tokens", ann, json={"name": "laptop"})
    assert made["token"].startswith("sk_e2b_")
    token = {"Authorization": f"Bearer {made['token']}"}
    assert await api.status("GET", "/v2/sandboxes", token) == 200
    assert await api.status("DELETE", f"/access-tokens/{made['id']}", bob) == 404
    await api.ok("DELETE", f"/access-tokens/{made['id']}", ann)
    assert await api.status("GET", "/v2/sandboxes", token) == 401


async def test_a_jwt_runs_out(api: Api, running: Running) -> None:
    """After its lifetime a JWT is refused with the reason."""
    team_id, _ = await api.new_team("acme")
    _, bearer = await api.new_user("ann@example.org", team_id)
    assert await api.status("GET", "/teams", bearer) == 200
    running.world.clock.advance(86_400 + 60)
    answer = await api.http.get("/teams", headers=bearer)
    assert answer.status_code == 401
    assert "expired" in answer.json()["message"]


async def test_quota_holds_under_a_crowd(api: Api) -> None:
    """Whatever many creates at once do, the team's CPU stays within its limit; the refusal says which and is final."""
    _, key = await api.new_team("small", maxMillicpu=6000)
    answers = await asyncio.gather(
        *(api.http.post("/v2/sandboxes", headers=key, json={"templateID": "base"}) for _ in range(10))
    )
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 7
    for answer in refused:
        assert "limit of CPU: 6000 of 6000 millicpu in use, 2000 more asked" in answer.json()["message"]
        assert answer.headers["Should-Retry"] == "false"


async def test_the_grace_bin_never_costs_its_team_a_sandbox(api: Api, running: Running) -> None:
    """It counts as the team's disk, and what has lain in it longest makes room, the team's own only."""
    _, key = await api.new_team("small", maxDiskMiB=25_000)
    _, other = await api.new_team("other")
    binned = []
    for caller in (other, key, key):
        made = (await api.ok("POST", "/v2/sandboxes", caller, json={"templateID": "base", "timeout": 3}))["sandboxID"]
        await running.wait_ended(made, turn_s=0.5)
        binned.append(made)
    assert set(running.world.node.kept) == set(binned)
    await api.ok("POST", "/v2/sandboxes", key, json={"templateID": "base"})
    assert set(running.world.node.kept) == {binned[0], binned[2]}
    await api.ok("POST", "/v2/sandboxes", key, json={"templateID": "base"})
    answer = await api.http.post("/v2/sandboxes", headers=key, json={"templateID": "base"})
    assert answer.status_code == 429
    assert "limit of disk: 20480 of 25000 MiB in use, 10240 more asked" in answer.json()["message"]
    assert set(running.world.node.kept) == {binned[0]}


async def test_snapshots_count_as_disk(api: Api) -> None:
    """They are the team's disk like its sandboxes, and one that has none left takes no more."""
    team_id, key = await api.new_team("small", maxDiskMiB=20_481)
    made = [(await api.ok("POST", "/v2/sandboxes", key, json={"templateID": "base"}))["sandboxID"] for _ in range(2)]
    saved = await api.ok("POST", f"/sandboxes/{made[0]}/snapshots", key)
    refused = await api.http.post(f"/sandboxes/{made[0]}/snapshots", headers=key)
    assert refused.status_code == 429
    assert "limit of disk: 20481 of 20481 MiB" in refused.json()["message"]
    assert refused.headers["Should-Retry"] == "false"
    await api.ok("DELETE", f"/sandboxes/{made[1]}", key)
    assert await api.status("POST", "/v2/sandboxes", key, json={"templateID": "base"}) == 429
    await api.ok("PATCH", f"/admin/teams/{team_id}", api.admin, json={"maxDiskMiB": 40_000})
    await api.ok("POST", f"/sandboxes/{made[0]}/snapshots", key)
    await api.ok("DELETE", f"/templates/{saved['snapshotID'].replace(':', '%3A')}", key)


async def test_sandbox_count_speaks_as_e2b_does(api: Api) -> None:
    """The concurrent limit is refused in E2B's words, and freed by a kill."""
    _, key = await api.new_team("one", maxSandboxes=1)
    made = await api.ok("POST", "/v2/sandboxes", key, json={"templateID": "base"})
    answer = await api.http.post("/v2/sandboxes", headers=key, json={"templateID": "base"})
    assert answer.status_code == 429
    assert "you have reached the maximum number of concurrent sandboxes (1)" in answer.json()["message"]
    await api.ok("DELETE", f"/sandboxes/{made['sandboxID']}", key)
    await api.ok("POST", "/v2/sandboxes", key, json={"templateID": "base"})


async def test_creates_per_second(api: Api, running: Running) -> None:
    """Faster than allowed is refused with a retry; a second later it works."""
    _, key = await api.new_team("slow", maxCreatesPerS=2)
    statuses = [await api.status("POST", "/v2/sandboxes", key, json={"templateID": "base"}) for _ in range(3)]
    assert statuses == [201, 201, 429]
    answer = await api.http.post("/v2/sandboxes", headers=key, json={"templateID": "base"})
    assert (answer.headers["Should-Retry"], answer.headers["Retry-After"]) == ("true", "1")
    running.world.clock.advance(1)
    await api.ok("POST", "/v2/sandboxes", key, json={"templateID": "base"})


async def test_the_operator_sets_quotas_and_kills_all(api: Api, running: Running) -> None:
    """A changed quota holds for the next create; kill-all ends a team's sandboxes and nobody else's."""
    team_id, key = await api.new_team("acme")
    _, other = await api.new_team("other")
    for headers in (key, key, other):
        await api.ok("POST", "/v2/sandboxes", headers, json={"templateID": "base"})
    counts = await api.ok("GET", "/admin/sandboxes/running-counts", api.admin)
    assert counts[team_id] == 2
    changed = await api.ok("PATCH", f"/admin/teams/{team_id}", api.admin, json={"maxSandboxes": 2})
    assert (changed["maxSandboxes"], changed["maxTimeoutS"]) == (2, 86_400)
    assert await api.status("POST", "/v2/sandboxes", key, json={"templateID": "base"}) == 429
    killed = await api.ok("POST", f"/admin/teams/{team_id}/sandboxes/kill", api.admin)
    assert killed == {"killedCount": 2, "failedCount": 0}
    assert await api.ok("GET", "/v2/sandboxes", key) == []
    assert len(await api.ok("GET", "/v2/sandboxes", other)) == 1
    assert await api.status("POST", "/admin/teams/team_none/sandboxes/kill", api.admin) == 404


async def test_a_draining_node_gets_nothing_new(api: Api) -> None:
    """`draining` keeps what runs and takes nothing new, also after the node has spoken; `ready` undoes it."""
    _, key = await api.new_team("acme")
    await api.ok("POST", "/v2/sandboxes", key, json={"templateID": "base"})
    node = (await api.ok("GET", "/nodes", api.admin))[0]
    assert (node["status"], node["sandboxCount"]) == ("ready", 1)
    await api.ok("POST", f"/nodes/{node['id']}", api.admin, json={"status": "draining"})
    assert await api.status("POST", "/v2/sandboxes", key, json={"templateID": "base"}) == 503
    assert (await api.ok("GET", f"/nodes/{node['id']}", api.admin))["status"] == "draining"
    await api.ok("POST", f"/nodes/{node['id']}", api.admin, json={"status": "ready"})
    await api.ok("POST", "/v2/sandboxes", key, json={"templateID": "base"})
    assert await api.status("GET", "/nodes/nod_none", api.admin) == 404


async def test_namespaces_are_the_teams_own(api: Api) -> None:
    """Two teams whose names make the same namespace would share the names of snapshots."""
    await api.new_team("Acme Inc")
    answer = await api.http.post("/admin/teams", headers=api.admin, json={"name": "acme-inc"})
    assert answer.status_code == 409
    assert "acme-inc/" in answer.json()["message"]


async def test_secrets_are_the_owners(running: Running) -> None:
    """Seed, issuer's key and admin token are files that their owner alone reads."""
    for name in (ISSUER_SEED_NAME, "admin-token"):
        assert stat.S_IMODE((running.world.config.data_dir / name).stat().st_mode) == 0o600


@pytest.fixture
def provider() -> Iterator[tuple[str, rsa.RSAPrivateKey]]:
    """An identity provider that publishes one key under `k1`."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key(), as_dict=True) | {"kid": "k1", "use": "sig"}

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"keys": [public]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/keys", private
    server.shutdown()
    thread.join()
    server.server_close()


async def test_an_identity_providers_tokens(running: Running, provider: tuple[str, rsa.RSAPrivateKey]) -> None:
    """A provider's token is taken when signature, issuer, audience and time are right, and else refused."""
    url, private = provider
    clock = ManualClock()
    config = replace(running.world.config, jwt_jwks_url=url, jwt_issuer="https://idp", jwt_audience="fb")
    jwts = Jwts(b"s" * 32, config, clock)
    now = int(clock.now().timestamp())
    good = {"iss": "https://idp", "aud": "fb", "sub": "u1", "exp": now + 60, "email": "A@b.c", "email_verified": True}

    def sign(key: Any = private, algorithm: str = "RS256", kid: str = "k1", **changes: Any) -> str:
        return jwt.encode(good | changes, key, algorithm=algorithm, headers={"kid": kid})

    claims = await jwts.check(sign())
    assert (claims.issuer, claims.subject, claims.email) == ("https://idp", "u1", "a@b.c")
    assert (await jwts.check(sign(email_verified=False))).email is None
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for token in (
        sign(exp=now - 60), sign(aud="other"), sign(iss="https://evil"), sign(nbf=now + 600), sign(key=stranger),
        sign(kid="k2"), sign(iss="firebrick"), sign(key="x" * 32, algorithm="HS256"),
        jwt.encode(good, None, algorithm="none"), "a.b.c", "", "x" * 10_000,
    ):  # fmt: skip
        with pytest.raises(Unauthenticated):
            await jwts.check(token)
