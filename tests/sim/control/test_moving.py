"""Snapshots out of the API as archives and in again, as their owners and the operator move them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from firebrick.config import Config
from firebrick.control.snapshot_archive import frame, write_archive
from firebrick.control.tokens import SEAL_SEED_NAME, load_secrets
from firebrick.control.workflows.engine import run_workflow
from firebrick.control.workflows.snapshot_import import STEPS, SnapshotImport
from firebrick.model.errors import Unavailable
from firebrick.model.ids import BuildId, NodeId, SandboxId, new_snapshot_id, new_template_id
from firebrick.model.machine import RuntimeName
from firebrick.model.snapshot import Snapshot, SnapshotState
from firebrick.rpc.node_api import ImportSnapshot
from firebrick.store.snapshots import snapshot_list_all
from tests.sim.control.conftest import create
from tests.sim.control.test_workflow_faults import broken, doubled
from tests.support.control import BUILD_ID, LIMITS, Running, World, run_control
from tests.support.fake_node import EMPTY_ARCHIVE
from tests.support.owners import open_api
from tests.support.wait import wait_for

REFUSAL = "It was saved on a processor that has what this one has not: " + ", ".join(f"avx512_{n}" for n in range(40))
ELSEWHERE = b"another instance's seal, 32 bytes"


def snapshot(running: Running, **changes: object) -> Snapshot:
    made = Snapshot(
        snapshot_id=new_snapshot_id(), template_id=new_template_id(), team_id=running.team.team_id,
        state=SnapshotState.CREATING, build_id=BUILD_ID, source_id=SandboxId("i" + "a" * 20), node_id=NodeId("nod_1"),
        limits=LIMITS, created_at=running.world.clock.now(), runtime=RuntimeName.SIM,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


async def archive_of(made: Snapshot, seal: bytes = ELSEWHERE) -> bytes:
    async def parts() -> AsyncIterator[bytes]:
        for part in (*EMPTY_ARCHIVE, b"chunk"):
            yield part

    return b"".join([piece async for piece in write_archive(made, parts(), seal)])


async def bring(client: httpx.AsyncClient, archive: bytes, **options: object) -> httpx.Response:
    return await client.post("/snapshots/archive", content=archive, **options)  # type: ignore[arg-type]


async def exported(client: httpx.AsyncClient, name: str) -> bytes:
    answer = await client.get(f"/snapshots/{name.replace('/', '%2F')}/archive")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    return answer.content


async def delete_all(client: httpx.AsyncClient, running: Running) -> None:
    for item in (await client.get("/snapshots")).json():
        assert (await client.delete(f"/templates/{item['snapshotID'].replace('/', '%2F')}")).status_code == 204
    await wait_for(lambda: is_gone(running))


async def is_gone(running: Running) -> bool:
    running.world.clock.advance(5)
    async with running.control.platform.database.read() as tx:
        return await snapshot_list_all(tx) == () and running.world.node.snapshots == {}


def admin(running: Running) -> dict[str, str]:
    token = running.world.config.admin_token_file.read_text().strip()
    return {"X-Admin-Token": token, "X-Team-ID": running.team.team_id}


async def test_out_and_in_again(running: Running, client: httpx.AsyncClient) -> None:
    """Named and unnamed; twice; under another name. Sandboxes are created from what came in, and the audit log tells
    of both."""
    box = await create(client)
    for body, names in (({}, []), ({"name": "saved:v1"}, ["default/saved"])):
        made = (await client.post(f"/sandboxes/{box['sandboxID']}/snapshots", json=body)).json()
        archive = await exported(client, made["snapshotID"])
        for _ in range(2):
            brought = await bring(client, archive)
            assert brought.status_code == 201, brought.text
            assert (brought.json()["names"], brought.json()["keepsMemory"]) == (names, False)
            assert "memoryRefusal" not in brought.json()
            assert (await create(client, templateID=brought.json()["snapshotID"]))["sandboxID"]
    renamed = await bring(client, archive, params={"name": "other"})
    assert renamed.json()["snapshotID"] == "default/other:default"
    assert (await bring(client, archive, params={"name": "No Name"})).status_code == 400
    lines = await running.control.audit.list_lines(after=0, limit=1000)
    assert {line.object_id for line in lines if line.action == "snapshot.export"} >= {"default/saved:v1"}
    assert {line.object_id for line in lines if line.action == "POST /snapshots/archive"} >= {"default/other:default"}
    await delete_all(client, running)


async def test_only_the_operator_takes_what_nobody_known_sealed(running: Running, client: httpx.AsyncClient) -> None:
    """What is in it goes to a kernel and a monitor of ours: an owner's key is not enough."""
    archive = await archive_of(snapshot(running, name="default/saved"))
    refused = await bring(client, archive)
    assert (refused.status_code, running.world.node.snapshots) == (403, {})
    assert "--trust" in refused.json()["message"]
    client.headers.pop("X-API-Key")
    brought = await bring(client, archive, headers=admin(running))
    assert (brought.status_code, brought.json()["names"]) == (201, ["default/saved"])
    client.headers["X-API-Key"] = running.key or ""
    await delete_all(client, running)


@pytest.mark.parametrize(
    ("what", "status", "says"),
    [
        ("build", 404, "templates/bld_2 in the data directory"),
        ("runtime", 400, "runtime 'gvisor'"),
        ("quota", 429, "limit of disk"),
        ("cut", 400, "cut off"),
        ("more", 400, "behind its end"),
        ("other", 400, "not a snapshot"),
        ("nothing", 400, "cut off"),
        ("node", 503, "No node answers"),
    ],
)
async def test_what_cannot_be_taken_leaves_nothing(
    running: Running, client: httpx.AsyncClient, what: str, status: int, says: str
) -> None:
    """Each refusal says what to do, and neither row nor file is left."""
    made = snapshot(running)
    if what == "build":
        made = replace(made, build_id=BuildId("bld_2"))
    if what == "runtime":
        made = replace(made, runtime=RuntimeName.GVISOR)
    archive = await archive_of(made)
    if what == "cut":
        archive = archive[:-8]
    if what == "more":
        archive += frame(b"more")
    if what == "other":
        archive = b"PK\3\4" + archive
    if what == "nothing":
        archive = b""
    headers = admin(running)
    if what == "quota":
        api = open_api(running)
        await create(client)
        async with api.http:
            await api.ok("PATCH", f"/admin/teams/{running.team.team_id}", headers, json={"maxDiskMiB": 1})
    if what == "node":
        running.world.node.go_down()
        await running.control.platform.nodes.refresh()
    client.headers.pop("X-API-Key")
    refused = await bring(client, archive, headers=headers)
    client.headers["X-API-Key"] = running.key or ""
    running.world.node.come_back()
    assert (refused.status_code, says in refused.json()["message"]) == (status, True), refused.text
    await wait_for(lambda: is_gone(running))


async def test_memory_that_cannot_go_on_is_told_and_created_without(
    running: Running, client: httpx.AsyncClient
) -> None:
    """At the import; at a create, 409 with the way out before the reason, which may be long; the disk starts."""
    running.world.node.memory_refusal = REFUSAL
    client.headers.pop("X-API-Key")
    brought = await bring(client, await archive_of(snapshot(running, keeps_memory=True)), headers=admin(running))
    client.headers["X-API-Key"] = running.key or ""
    assert (brought.json()["keepsMemory"], brought.json()["memoryRefusal"]) == (True, REFUSAL)
    refused = await client.post("/v2/sandboxes", json={"templateID": brought.json()["snapshotID"]})
    assert (refused.status_code, refused.json()["error_code"]) == (409, "snapshot_memory_refused")
    assert 'metadata firebrick.memory: "false"' in refused.json()["message"]
    assert "It was saved on a processor" in refused.json()["message"]
    bad = await client.post("/v2/sandboxes", json={"templateID": "base", "metadata": {"firebrick.memory": "no"}})
    assert bad.status_code == 400
    made = await create(client, templateID=brought.json()["snapshotID"], metadata={"firebrick.memory": "false"})
    assert running.world.node.requests[SandboxId(made["sandboxID"])].keep_memory is False
    await running.control.sandboxes.kill(running.team.team_id, SandboxId(made["sandboxID"]))
    await running.wait_ended(SandboxId(made["sandboxID"]))
    await delete_all(client, running)


async def test_an_export_that_breaks_is_cut_off(running: Running, client: httpx.AsyncClient) -> None:
    """Before its first byte it is an error; behind it what was sent can be told from a whole one."""
    box = await create(client)
    made = (await client.post(f"/sandboxes/{box['sandboxID']}/snapshots")).json()["snapshotID"]
    running.world.node.before["export_snapshot"] = _fail
    assert (await client.get(f"/snapshots/{made}/archive")).status_code == 503
    running.world.node.before.clear()
    assert (await client.get("/snapshots/base/archive")).status_code == 404
    running.world.node.after["export_snapshot"] = _fail
    sent: list[bytes] = []
    with pytest.raises(Unavailable, match="injected"):
        async for piece in await running.control.moving.export(running.team, made):
            sent.append(piece)
    running.world.node.after.clear()
    assert (await bring(client, b"".join(sent))).status_code == 400
    await delete_all(client, running)


def _fail() -> None:
    raise Unavailable("injected")


def wish(running: Running) -> SnapshotImport:
    async def parts() -> AsyncIterator[bytes]:
        yield EMPTY_ARCHIVE[0]

    made = snapshot(running)
    wanted = ImportSnapshot(
        snapshot_id=made.snapshot_id, build_id=BUILD_ID, runtime=RuntimeName.SIM, limits=LIMITS, keeps_memory=False,
        data_bytes=0,
    )  # fmt: skip
    return SnapshotImport(platform=running.control.platform, snapshot=made, wanted=wanted, parts=parts())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("index", range(len(STEPS)))
async def test_a_failed_step_is_undone(running: Running, index: int, after: bool) -> None:
    """When a step fails, before or after its effect, nothing of it is left; a step done twice makes the same one."""
    steps = [doubled(step) for step in STEPS[:index]] + [broken(doubled(STEPS[index]), after=after)]  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="injected"):
        await run_workflow("snapshot_import", steps, wish(running))  # type: ignore[arg-type]
    await wait_for(lambda: is_gone(running))


@pytest.mark.parametrize("count", range(len(STEPS) + 1))
async def test_an_import_cut_off_is_settled_at_restart(world: World, count: int) -> None:
    """The control plane dies after any step: the next one deletes what nobody was told of, and keeps what is ready."""
    async with run_control(world) as first:
        create_it = wish(first)
        for step in STEPS[:count]:
            await step.act(create_it)
    async with run_control(world) as second:
        if count == len(STEPS):
            await second.assert_consistent()
            assert len(world.node.snapshots) == 1
        else:
            await wait_for(lambda: is_gone(second))


def test_a_seal_is_made_once_and_private(tmp_path: Path) -> None:
    """Whoever has it can make what every instance with it takes."""
    config = Config(data_dir=tmp_path)
    assert load_secrets(config).seal_seed == load_secrets(config).seal_seed
    assert (tmp_path / SEAL_SEED_NAME).stat().st_mode & 0o777 == 0o600
