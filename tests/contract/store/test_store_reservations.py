"""Quota and capacity hold under any concurrency; the small tables keep what they are given."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from firebrick.model.errors import AlreadyExists, LimitExceeded, NoCapacity
from firebrick.model.ids import BuildId, KeyId, SandboxId, TeamId, TemplateId
from firebrick.model.machine import Limits
from firebrick.model.sandbox import SandboxState
from firebrick.model.team import ApiKey
from firebrick.model.template import BuildState
from firebrick.store.database import Database
from firebrick.store.events import SandboxHappening, event_delete_before, event_insert, event_list
from firebrick.store.idempotency import (
    IdempotencyRecord,
    idempotency_delete_before,
    idempotency_delete_of,
    idempotency_fetch,
    idempotency_insert,
)
from firebrick.store.nodes import node_list_views, node_upsert
from firebrick.store.quotas import quota_check
from firebrick.store.reservations import reservation_delete, reservation_insert, reservation_list
from firebrick.store.sandboxes import sandbox_insert
from firebrick.store.teams import key_fetch_by_digest, key_insert
from firebrick.store.templates import build_fetch_ready, build_list, build_upsert, template_fetch, template_list
from tests.support.rows import (
    LIMITS,
    NODE_ID,
    NOW,
    TEAM_ID,
    TEMPLATE_ID,
    make_build,
    make_node,
    make_sandbox,
    make_team,
    make_template,
)


async def _reserve(database: Database, limits: Limits = LIMITS) -> SandboxId | None:
    """One create's transaction; None when it was refused."""
    sandbox = make_sandbox(state=SandboxState.CREATING, limits=limits)
    try:
        async with database.write() as tx:
            await quota_check(tx, TEAM_ID, LIMITS, now=NOW)
            await sandbox_insert(tx, sandbox)
            await reservation_insert(tx, sandbox_id=sandbox.sandbox_id, node_id=NODE_ID, limits=limits)
    except (LimitExceeded, NoCapacity):
        return None
    return sandbox.sandbox_id


async def test_a_team_never_exceeds_its_quota(database: Database) -> None:
    """Of 60 creates at once with a limit of 20, exactly 20 are granted."""
    small = replace(LIMITS, millicpu=1, memory_mib=1, disk_mib=1)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_reserve(database, small)) for _ in range(60)]
    assert sum(task.result() is not None for task in tasks) == 20


async def test_reserved_never_exceeds_capacity(database: Database) -> None:
    """Of 30 creates at once that each want a sixteenth of the CPU, 16 fit; the freed one makes room for one."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_reserve(database)) for _ in range(30)]
    granted = [task.result() for task in tasks if task.result() is not None]
    assert len(granted) == 16
    async with database.read() as tx:
        (view,) = await node_list_views(tx)
        assert view.reserved_millicpu == 16_000
        assert len(await reservation_list(tx)) == 16
    async with database.write() as tx:
        assert granted[0] is not None
        await reservation_delete(tx, granted[0])
        await reservation_delete(tx, granted[0])
    assert await _reserve(database) is not None
    assert await _reserve(database) is None


async def test_a_refused_reservation_leaves_no_sandbox(database: Database) -> None:
    """Row and reservation stand in one transaction: without capacity there is neither."""
    assert await _reserve(database, replace(LIMITS, memory_mib=1_000_000)) is None
    async with database.read() as tx:
        assert await reservation_list(tx) == ()


async def test_nodes_are_written_over(database: Database) -> None:
    """A second description replaces the first; a node without reservations has nothing reserved."""
    async with database.write() as tx:
        await node_upsert(tx, make_node(free_slot_count=7, builds=frozenset()), seen_at=NOW)
    async with database.read() as tx:
        assert await node_list_views(tx) == (make_node(free_slot_count=7, builds=frozenset()),)


async def test_keys_are_found_by_digest(database: Database) -> None:
    """A key's digest leads to the key and its team; an unknown digest to nothing."""
    key = ApiKey(key_id=KeyId("key_1"), team_id=TEAM_ID, name="first", mask="e2b_…abcd", created_at=NOW)
    async with database.write() as tx:
        await key_insert(tx, key, digest="d" * 64)
    async with database.read() as tx:
        assert await key_fetch_by_digest(tx, "d" * 64) == (key, "d" * 64, make_team())
        assert await key_fetch_by_digest(tx, "e" * 64) is None


async def test_the_newest_ready_build_wins(database: Database) -> None:
    """A template is found by id and alias; of its builds the newest that is ready is used."""
    newer = make_build(build_id=BuildId("bld_2"), created_at=NOW + timedelta(seconds=1))
    failed = make_build(
        build_id=BuildId("bld_3"), created_at=NOW + timedelta(seconds=2), state=BuildState.ERROR
    )  # fmt: skip
    async with database.write() as tx:
        await build_upsert(tx, failed)
        await build_upsert(tx, replace(newer, state=BuildState.BUILDING))
        await build_upsert(tx, newer)
    async with database.read() as tx:
        assert await build_fetch_ready(tx, TEMPLATE_ID) == newer
        assert await build_list(tx, TEMPLATE_ID) == (failed, newer, make_build())
        assert await build_fetch_ready(tx, TemplateId("none")) is None
        assert await template_fetch(tx, "base") == make_template()
        assert await template_fetch(tx, TEMPLATE_ID) == make_template()
        assert await template_fetch(tx, "none") is None
        assert await template_list(tx, TeamId("any")) == (make_template(),)


async def test_events_are_kept_in_order(database: Database) -> None:
    """Events of a sandbox come back oldest first and are forgotten by age."""
    first = SandboxHappening(sandbox_id=SandboxId("i1"), team_id=TEAM_ID, at=NOW, kind="started")
    second = replace(first, at=NOW + timedelta(seconds=1), kind="ended", reason="oom", detail="why")
    async with database.write() as tx:
        await event_insert(tx, first)
        await event_insert(tx, second)
    async with database.write() as tx:
        assert await event_list(tx, TEAM_ID, SandboxId("i1")) == (first, second)
        await event_delete_before(tx, NOW + timedelta(seconds=1))
        assert await event_list(tx, TEAM_ID, SandboxId("i1")) == (second,)


async def test_an_idempotency_key_is_claimed_once(database: Database) -> None:
    """The second claim of a key is refused; a forgotten key may be claimed again."""
    record = IdempotencyRecord(
        team_id=TEAM_ID, key="k", body_hash="h", sandbox_id=SandboxId("i1"), created_at=NOW
    )  # fmt: skip
    async with database.write() as tx:
        await idempotency_insert(tx, record)
    with pytest.raises(AlreadyExists):
        async with database.write() as tx:
            await idempotency_insert(tx, replace(record, sandbox_id=SandboxId("i2")))
    async with database.write() as tx:
        assert await idempotency_fetch(tx, TEAM_ID, "k") == record
        assert await idempotency_fetch(tx, TeamId("other"), "k") is None
        await idempotency_delete_of(tx, SandboxId("i1"))
        await idempotency_insert(tx, record)
        await idempotency_delete_before(tx, NOW + timedelta(microseconds=1))
        assert await idempotency_fetch(tx, TEAM_ID, "k") is None
