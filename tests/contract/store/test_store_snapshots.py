"""Rows of snapshots and samples, on both databases."""

from dataclasses import replace
from datetime import timedelta

import pytest

from firebrick.model.errors import Conflict
from firebrick.model.ids import SandboxId, SnapshotId, TeamId, TemplateId
from firebrick.model.machine import RuntimeName
from firebrick.model.sandbox import OnTimeout, SandboxState
from firebrick.model.snapshot import Snapshot, SnapshotState
from firebrick.store.database import Database
from firebrick.store.nodes import node_list_views
from firebrick.store.reservations import (
    reservation_delete,
    reservation_grow,
    reservation_insert,
    reservation_list,
    reservation_shrink,
)
from firebrick.store.samples import (
    FULL,
    TeamSample,
    UsageSample,
    sample_thin,
    team_sample_insert,
    team_sample_list,
    usage_insert,
    usage_list,
)
from firebrick.store.sandboxes import (
    sandbox_delete_ended_before,
    sandbox_fetch,
    sandbox_insert,
    sandbox_list_bin,
    sandbox_update_if,
)
from firebrick.store.snapshots import (
    SnapshotFilter,
    snapshot_confirm,
    snapshot_delete,
    snapshot_fetch,
    snapshot_fetch_ready,
    snapshot_insert,
    snapshot_list,
    snapshot_list_known,
    snapshot_list_unfinished,
    snapshot_mark_deleting,
    snapshot_set_stored,
)
from firebrick.store.templates import template_fetch, template_insert, template_list
from tests.support.rows import BUILD_ID, LIMITS, NODE_ID, NOW, TEAM_ID, make_sandbox, make_template

OWN = TemplateId("tsnap")


def make_snapshot(number: int, **changes: object) -> Snapshot:
    snapshot = Snapshot(
        snapshot_id=SnapshotId(f"s{number}"), template_id=OWN, team_id=TEAM_ID, state=SnapshotState.READY,
        build_id=BUILD_ID, source_id=SandboxId("i1"), node_id=NODE_ID, limits=LIMITS,
        created_at=NOW + timedelta(seconds=number), runtime=RuntimeName.SIM, name="a/b", tag="t", keeps_memory=True,
        disk_bytes=2**40, stored_bytes=None,
    )  # fmt: skip
    return replace(snapshot, **changes)  # type: ignore[arg-type]


async def insert_own(database: Database, *snapshots: Snapshot) -> None:
    async with database.write() as tx:
        await template_insert(tx, make_template(template_id=OWN, alias="a/b", team_id=TEAM_ID, is_snapshot=True))
        for snapshot in snapshots:
            await snapshot_insert(tx, snapshot)


async def test_a_snapshot_survives_the_round_trip(database: Database) -> None:
    """Every field comes back as it was; its size is noted once; its template is not listed among templates."""
    snapshot = make_snapshot(1)
    await insert_own(database, snapshot)
    async with database.write() as tx:
        assert await snapshot_fetch(tx, snapshot.snapshot_id) == snapshot
        await snapshot_set_stored(tx, {snapshot.snapshot_id: 7})
        await snapshot_set_stored(tx, {snapshot.snapshot_id: 8})
        assert await snapshot_fetch(tx, snapshot.snapshot_id) == replace(snapshot, stored_bytes=7)
        assert await template_list(tx, TEAM_ID) == (make_template(),)
        assert await snapshot_list_known(tx, [snapshot.snapshot_id, SnapshotId("s9")]) == {snapshot.snapshot_id}


async def test_the_newest_takes_the_tag(database: Database) -> None:
    """Confirming one marks the one before for deletion; one that was marked meanwhile cannot be confirmed."""
    old, new = make_snapshot(1), make_snapshot(2, state=SnapshotState.CREATING)
    await insert_own(database, old, new, make_snapshot(3, tag="other"))
    async with database.write() as tx:
        assert await snapshot_fetch_ready(tx, OWN, "t") == old
        await snapshot_confirm(tx, replace(new, state=SnapshotState.READY))
        assert await snapshot_fetch_ready(tx, OWN, "t") == replace(new, state=SnapshotState.READY)
        assert [item.snapshot_id for item in await snapshot_list_unfinished(tx)] == [old.snapshot_id]
        assert await snapshot_mark_deleting(tx, [old.snapshot_id, new.snapshot_id]) == 1
    with pytest.raises(Conflict):
        async with database.write() as tx:
            await snapshot_confirm(tx, replace(new, state=SnapshotState.READY))


async def test_a_template_goes_with_its_last_snapshot(database: Database) -> None:
    """It stays while another snapshot or a remembered sandbox refers to it."""
    await insert_own(database, make_snapshot(1), make_snapshot(2))
    child = make_sandbox(template_id=OWN, state=SandboxState.ENDED, ended_at=NOW)
    async with database.write() as tx:
        await sandbox_insert(tx, child)
        await snapshot_delete(tx, SnapshotId("s1"))
        await snapshot_delete(tx, SnapshotId("s1"))
        await snapshot_delete(tx, SnapshotId("s2"))
        assert await template_fetch(tx, OWN) is not None
        await sandbox_delete_ended_before(tx, NOW + timedelta(seconds=1))
        await snapshot_insert(tx, make_snapshot(3))
        await snapshot_delete(tx, SnapshotId("s3"))
        assert await template_fetch(tx, OWN) is None


async def test_snapshots_are_paged_and_filtered(database: Database) -> None:
    """Newest first after a key; only the team's, ready and not private."""
    shown = [make_snapshot(1, source_id=SandboxId("i2")), make_snapshot(2, tag="v2"), make_snapshot(3)]
    await insert_own(
        database, *shown, make_snapshot(4, is_private=True), make_snapshot(5, state=SnapshotState.CREATING)
    )

    async def ids(**filters: object) -> list[str]:
        async with database.read() as tx:
            found = await snapshot_list(tx, SnapshotFilter(**{"team_id": TEAM_ID} | filters))  # type: ignore[arg-type]
        return [item.snapshot_id for item in found]

    assert await ids() == ["s3", "s2", "s1"]
    assert await ids(limit=1) == ["s3", "s2"]
    assert await ids(after=(shown[2].created_at, "s3")) == ["s2", "s1"]
    assert await ids(source_id=SandboxId("i2")) == ["s1"]
    assert await ids(names=frozenset({"a/b"}), tag="v2") == ["s2"]
    assert await ids(names=frozenset({str(OWN)})) == ["s3", "s2", "s1"]
    assert await ids(names=frozenset({"c"})) == []
    assert await ids(team_id=TeamId("other")) == []


async def test_a_paused_sandbox_survives_the_round_trip(database: Database) -> None:
    """What pause, timeout and network have to say comes back as it was, also after a change."""
    sandbox = make_sandbox(
        on_timeout=OnTimeout.PAUSE, auto_pause_memory=False, auto_resume=True, idle_timeout_s=60, keeps_memory=False,
        paused_at=NOW, recoverable_until=NOW, snapshot_id=SnapshotId("s1"), network={"allowOut": ["1.1.1.1"]},
        state=SandboxState.PAUSED,
    )  # fmt: skip
    async with database.write() as tx:
        await sandbox_insert(tx, sandbox)
        assert await sandbox_fetch(tx, sandbox.sandbox_id) == sandbox
        changed = replace(sandbox, keeps_memory=None, paused_at=None, on_timeout=OnTimeout.KILL, network=None)
        assert await sandbox_update_if(tx, changed) == replace(changed, generation=2)
        assert await sandbox_fetch(tx, sandbox.sandbox_id) == replace(changed, generation=2)


async def test_a_pause_gives_back_all_but_the_disk(database: Database) -> None:
    """Shrinking and growing a reservation moves CPU and memory only; a full node refuses to grow it."""
    one, two = make_sandbox(), make_sandbox()
    big = replace(LIMITS, millicpu=16_000)
    async with database.write() as tx:
        for sandbox in (one, two):
            await sandbox_insert(tx, sandbox)
        await reservation_insert(tx, sandbox_id=one.sandbox_id, node_id=NODE_ID, limits=big)
        await reservation_shrink(tx, one.sandbox_id)
        (view,) = await node_list_views(tx)
        assert (view.reserved_millicpu, view.reserved_memory_mib, view.reserved_disk_mib) == (0, 0, big.disk_mib)
        await reservation_insert(tx, sandbox_id=two.sandbox_id, node_id=NODE_ID, limits=big)
    with pytest.raises(Exception, match="CPU is full"):
        async with database.write() as tx:
            await reservation_grow(tx, sandbox_id=one.sandbox_id, node_id=NODE_ID, limits=big)
    async with database.write() as tx:
        await reservation_delete(tx, two.sandbox_id)
        await reservation_grow(tx, sandbox_id=one.sandbox_id, node_id=NODE_ID, limits=big)
        (view,) = await node_list_views(tx)
        assert (view.reserved_millicpu, view.reserved_disk_mib) == (16_000, big.disk_mib)
        with pytest.raises(Conflict):
            await reservation_grow(tx, sandbox_id=two.sandbox_id, node_id=NODE_ID, limits=replace(LIMITS, millicpu=0))


async def test_the_grace_bin_is_remembered(database: Database) -> None:
    """An ended sandbox that holds a reservation is in the bin, and is not forgotten before it has left it."""
    row = make_sandbox(state=SandboxState.ENDED, ended_at=NOW - timedelta(days=9), recoverable_until=NOW)
    async with database.write() as tx:
        await sandbox_insert(tx, row)
        await sandbox_insert(tx, make_sandbox(state=SandboxState.ENDED, ended_at=NOW))
        await reservation_insert(tx, sandbox_id=row.sandbox_id, node_id=NODE_ID, limits=LIMITS)
        assert await sandbox_list_bin(tx) == (row,)
        assert await sandbox_delete_ended_before(tx, NOW - timedelta(days=1)) == 0
        assert len(await reservation_list(tx)) == 1
        await reservation_delete(tx, row.sandbox_id)
        assert await sandbox_list_bin(tx) == ()
        assert await sandbox_delete_ended_before(tx, NOW - timedelta(days=1)) == 1


async def test_samples_are_found_and_thinned(database: Database) -> None:
    """Samples come back by window, oldest first; old ones are thinned to one a minute and forgotten in the end."""

    def usage(seconds: int) -> UsageSample:
        return UsageSample(
            sandbox_id=SandboxId("i1"), at=NOW + timedelta(seconds=seconds), cpu_used_pct=12.5, memory_bytes=2**40,
            memory_limit_bytes=2**41, disk_bytes=1, disk_limit_bytes=2,
        )  # fmt: skip

    samples = [usage(seconds) for seconds in range(0, 120, 5)]
    team = [TeamSample(team_id=TEAM_ID, at=item.at, running_count=3, start_rate=0.5) for item in samples[::3]]
    async with database.write() as tx:
        await usage_insert(tx, samples)
        await usage_insert(tx, [])
        await team_sample_insert(tx, team)
    async with database.read() as tx:
        assert await usage_list(tx, SandboxId("i1"), start=None, end=None) == tuple(samples)
        assert await usage_list(tx, SandboxId("i1"), start=samples[1].at, end=samples[2].at) == tuple(samples[1:3])
        assert await usage_list(tx, SandboxId("i2"), start=None, end=None) == ()
        assert await team_sample_list(tx, TEAM_ID, start=NOW, end=NOW) == (team[0],)
    async with database.write() as tx:
        await sample_thin(tx, now=NOW + FULL + timedelta(seconds=120), kept=timedelta(days=1))
        assert len(await usage_list(tx, SandboxId("i1"), start=None, end=None)) == 2
        assert len(await team_sample_list(tx, TEAM_ID, start=NOW, end=NOW + FULL)) == 2
        await sample_thin(tx, now=NOW + timedelta(days=2), kept=timedelta(days=1))
        assert await usage_list(tx, SandboxId("i1"), start=None, end=None) == ()
