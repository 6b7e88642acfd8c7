"""How large a disk may be asked for at a create."""

import httpx
import pytest

from firebrick.model.ids import SandboxId, SnapshotId
from firebrick.store.reservations import reservation_list
from tests.sim.control.conftest import create
from tests.sim.control.test_moving import delete_all
from tests.support.control import LIMITS, Running

LARGE = LIMITS.disk_mib * 2


def disk(mib: object, **more: str) -> dict[str, str]:
    return {"firebrick.diskMiB": str(mib)} | more


async def test_a_larger_disk_is_promised_reserved_and_told(running: Running, client: httpx.AsyncClient) -> None:
    """Its node, the reservation and its owner hear of it; the size of the source asks for nothing."""
    made = await create(client, metadata=disk(LARGE))
    same = await create(client, metadata=disk(LIMITS.disk_mib))
    requests = running.world.node.requests
    sizes = [requests[SandboxId(item["sandboxID"])].limits.disk_mib for item in (made, same)]
    assert sizes == [LARGE, LIMITS.disk_mib]
    told = (await client.get(f"/sandboxes/{made['sandboxID']}")).json()
    assert (told["diskSizeMB"], told["cpuCount"], told["memoryMB"]) == (LARGE, 2, LIMITS.memory_mib)
    async with running.control.platform.database.read() as tx:
        assert len(await reservation_list(tx)) == 2
    for item in (made, same):
        assert (await client.delete(f"/sandboxes/{item['sandboxID']}")).status_code == 204
        await running.wait_ended(SandboxId(item["sandboxID"]))


ODD = ("", "x", "-1", "1e5", "1.5", " 20480", "٣", "9" * 10)
BEYOND = (0, 1024, LIMITS.disk_mib - 1, LARGE + 1, 102_400 + 1024)


@pytest.mark.parametrize("asked", ODD + BEYOND)
async def test_other_sizes_are_refused(client: httpx.AsyncClient, asked: object) -> None:
    """No number, smaller than the source's, no whole GiB, or beyond the setting; the answer says what may be asked."""
    refused = await client.post("/v2/sandboxes", json={"templateID": "base", "metadata": disk(asked)})
    assert (refused.status_code, "MiB" in refused.json()["message"]) == (400, True), refused.text


async def test_a_snapshots_disk_grows_but_not_under_its_memory(running: Running, client: httpx.AsyncClient) -> None:
    """A disk alone does, and what is taken of the larger one has its size; memory must be given up for it."""
    box = await create(client)
    made = (await client.post(f"/sandboxes/{box['sandboxID']}/snapshots")).json()["snapshotID"]
    larger = await create(client, templateID=made, metadata=disk(LARGE))
    again = (await client.post(f"/sandboxes/{larger['sandboxID']}/snapshots")).json()["snapshotID"]
    same = await create(client, templateID=again)
    assert running.world.node.requests[SandboxId(same["sandboxID"])].limits.disk_mib == LARGE
    smaller = await client.post("/v2/sandboxes", json={"templateID": again, "metadata": disk(LIMITS.disk_mib)})
    assert smaller.status_code == 400
    async with running.control.platform.database.write() as tx:
        await tx.exec_driver_sql("UPDATE snapshots SET keeps_memory = 1")
    refused = await client.post("/v2/sandboxes", json={"templateID": made, "metadata": disk(LARGE)})
    assert (refused.status_code, "firebrick.memory" in refused.json()["message"]) == (400, True)
    alone = await create(client, templateID=made, metadata=disk(LARGE, **{"firebrick.memory": "false"}))
    assert SnapshotId(running.world.node.requests[SandboxId(alone["sandboxID"])].snapshot_id or "")
    for item in (box, larger, same, alone):
        await client.delete(f"/sandboxes/{item['sandboxID']}")
        await running.wait_ended(SandboxId(item["sandboxID"]))
    await delete_all(client, running)
