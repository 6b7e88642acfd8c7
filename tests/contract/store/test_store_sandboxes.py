"""Rows of sandboxes: round trip, generations, pages."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text

from firebrick.model.errors import Conflict
from firebrick.model.ids import MachineId, SandboxId
from firebrick.model.machine import RuntimeName
from firebrick.model.sandbox import EndReason, SandboxState
from firebrick.store.database import Database
from firebrick.store.migrate import migrate
from firebrick.store.sandbox_pages import PageKey, SandboxFilter, sandbox_list_page
from firebrick.store.sandboxes import (
    sandbox_count_by_state,
    sandbox_delete_ended_before,
    sandbox_fetch,
    sandbox_insert,
    sandbox_list_due,
    sandbox_list_in_states,
    sandbox_list_states,
    sandbox_next_due,
    sandbox_update_if,
)
from firebrick.store.schema import sandbox_metadata
from tests.support.rows import NODE_ID, NOW, TEAM_ID, make_sandbox


async def test_a_sandbox_survives_the_round_trip(database: Database) -> None:
    """Every field of a sandbox comes back as it was, times to the microsecond, any text unchanged."""
    sandbox = make_sandbox(
        metadata={"ключ": "значение 🔥", "a&b=c": '"quoted"\n'}, env={"A": ""}, secure=False,
        runtime=RuntimeName.SIM, node_id=NODE_ID, machine_id=MachineId("m1"), address="10.1.2.3",
        allow_internet_access=False, ended_at=NOW + timedelta(microseconds=1), end_reason=EndReason.OOM,
        end_detail="why", state=SandboxState.ENDED, template_alias=None,
    )  # fmt: skip
    async with database.write() as tx:
        await sandbox_insert(tx, sandbox)
    async with database.read() as tx:
        assert await sandbox_fetch(tx, sandbox.sandbox_id) == sandbox
        assert await sandbox_fetch(tx, SandboxId("inone")) is None


async def test_a_stale_generation_is_refused(database: Database) -> None:
    """Of two changes decided on the same generation, the second raises Conflict and writes nothing."""
    sandbox = make_sandbox()
    async with database.write() as tx:
        await sandbox_insert(tx, sandbox)
    async with database.write() as tx:
        first = await sandbox_update_if(tx, replace(sandbox, timeout_s=1))
    assert first.generation == 2
    with pytest.raises(Conflict):
        async with database.write() as tx:
            await sandbox_update_if(tx, replace(sandbox, timeout_s=2))
    async with database.read() as tx:
        assert await sandbox_fetch(tx, sandbox.sandbox_id) == first


async def test_pages_are_complete_in_both_orders(database: Database) -> None:
    """Following pages gives every visible sandbox once, newest or oldest first, equal start times included."""
    starts = [NOW, NOW, NOW + timedelta(microseconds=1), NOW + timedelta(seconds=1), NOW - timedelta(seconds=1)]
    rows = [make_sandbox(started_at=start) for start in starts]
    async with database.write() as tx:
        for row in [*rows, make_sandbox(state=SandboxState.ENDED), make_sandbox(state=SandboxState.CREATING)]:
            await sandbox_insert(tx, row)
    expected = sorted(rows, key=lambda row: (row.started_at, row.sandbox_id))
    for newest_first in (True, False):
        seen, after = [], None
        while True:
            wanted = SandboxFilter(team_id=TEAM_ID, newest_first=newest_first, after=after, limit=2)
            async with database.read() as tx:
                page = await sandbox_list_page(tx, wanted)
            assert page.running_count == 5
            seen += page.sandboxes
            if not page.has_more:
                break
            after = PageKey(started_at=seen[-1].started_at, sandbox_id=seen[-1].sandbox_id)
        assert seen == (expected[::-1] if newest_first else expected)


async def test_filters_hold_together(database: Database) -> None:
    """Metadata pairs must all be equal; the start is inclusive; a template is named by id or alias."""
    old = make_sandbox(metadata={"a": "1"}, started_at=NOW - timedelta(microseconds=1))
    new = make_sandbox(metadata={"a": "1", "b": "2"})
    async with database.write() as tx:
        await sandbox_insert(tx, old)
        await sandbox_insert(tx, new)

    async def ids(**filters: object) -> set[str]:
        async with database.read() as tx:
            page = await sandbox_list_page(tx, SandboxFilter(team_id=TEAM_ID, **filters))  # type: ignore[arg-type]
        return {row.sandbox_id for row in page.sandboxes}

    both = {old.sandbox_id, new.sandbox_id}
    assert await ids(metadata={"a": "1"}) == both
    assert await ids(metadata={"a": "1", "b": "2"}) == {new.sandbox_id}
    assert await ids(metadata={"a": "2"}) == set()
    assert await ids(started_after=NOW) == {new.sandbox_id}
    assert await ids(template="base") == both
    assert await ids(template="tpl_base") == both
    assert await ids(template="other") == set()
    assert await ids(states=frozenset({SandboxState.PAUSED})) == set()
    assert await ids(metadata={"a": "1"}, states=frozenset({SandboxState.PAUSED})) == set()


async def test_due_ones_are_found_in_time_order(database: Database) -> None:
    """Only running sandboxes whose time is over are due, the longest overdue first."""
    late = make_sandbox(expires_at=NOW - timedelta(seconds=5))
    exact = make_sandbox(expires_at=NOW)
    future = make_sandbox(expires_at=NOW + timedelta(microseconds=1))
    ending = make_sandbox(expires_at=NOW - timedelta(seconds=9), state=SandboxState.ENDING)
    async with database.write() as tx:
        assert await sandbox_next_due(tx) is None
        for row in (future, exact, late, ending):
            await sandbox_insert(tx, row)
    async with database.read() as tx:
        assert [row.sandbox_id for row in await sandbox_list_due(tx, NOW, limit=10)] == [
            late.sandbox_id,
            exact.sandbox_id,
        ]
        assert await sandbox_next_due(tx) == late.expires_at
        assert await sandbox_list_in_states(tx, [SandboxState.ENDING]) == (ending,)
        assert await sandbox_list_states(tx, [late.sandbox_id, SandboxId("inone")]) == {
            late.sandbox_id: SandboxState.RUNNING
        }
        assert await sandbox_count_by_state(tx) == {SandboxState.RUNNING: 3, SandboxState.ENDING: 1}


async def test_only_old_ended_ones_are_forgotten(database: Database) -> None:
    """Deleting ended sandboxes spares younger ones and everything that lives."""
    old = make_sandbox(state=SandboxState.ENDED, ended_at=NOW - timedelta(days=2))
    young = make_sandbox(state=SandboxState.ENDED, ended_at=NOW)
    living = make_sandbox()
    async with database.write() as tx:
        for row in (old, young, living):
            await sandbox_insert(tx, row)
        assert await sandbox_delete_ended_before(tx, NOW - timedelta(days=1)) == 1
    async with database.read() as tx:
        assert await sandbox_fetch(tx, old.sandbox_id) is None
        assert await sandbox_fetch(tx, young.sandbox_id) == young
        assert await sandbox_fetch(tx, living.sandbox_id) == living


async def test_metadata_is_found_whatever_it_holds(database: Database) -> None:
    """Keys and values of any length and any characters are found; one that only looks alike is not."""
    odd = {"": "", "nul\0key": "nul\0value", "long": "x" * 60_000, "ключ": "значение 🔥", "a=b": "c"}
    sandbox = make_sandbox(metadata=odd)
    async with database.write() as tx:
        await sandbox_insert(tx, sandbox)
        await sandbox_insert(tx, make_sandbox(metadata={"a": "b=c", "long": "x" * 59_999}))

    async def count(**metadata: str) -> int:
        async with database.read() as tx:
            page = await sandbox_list_page(tx, SandboxFilter(team_id=TEAM_ID, metadata=metadata))
        assert page.running_count == len(page.sandboxes)
        return page.running_count

    for key, value in odd.items():
        assert await count(**{key: value}) == 1
    assert await count(**odd) == 1
    assert await count(**(odd | {"one": "more"})) == 0


async def test_metadata_is_forgotten_with_its_sandbox(database: Database) -> None:
    """No pair stays behind a row that is forgotten."""
    async with database.write() as tx:
        await sandbox_insert(tx, make_sandbox(metadata={"a": "1"}, state=SandboxState.ENDED, ended_at=NOW))
        assert await sandbox_delete_ended_before(tx, NOW + timedelta(seconds=1)) == 1
        assert (await tx.execute(select(func.count()).select_from(sandbox_metadata))).scalar_one() == 0


async def test_older_sandboxes_are_found_by_metadata_too(database: Database) -> None:
    """A database from before the table of pairs has one filled for its sandboxes."""
    sandbox = make_sandbox(metadata={"a": "1", "ключ": "значение 🔥"})
    async with database.write() as tx:
        await sandbox_insert(tx, sandbox)
        await sandbox_insert(tx, make_sandbox())
        # What every later migration made goes too, or it could not be made again.
        await tx.execute(text("DROP TABLE leases"))
        await tx.execute(text("DROP TABLE sandbox_metadata"))
        await tx.execute(text("ALTER TABLE sandboxes DROP COLUMN silent_at_pause"))
        await tx.execute(text("ALTER TABLE reservations DROP COLUMN saved_mib"))
        await tx.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    await migrate(database)
    async with database.read() as tx:
        page = await sandbox_list_page(tx, SandboxFilter(team_id=TEAM_ID, metadata=sandbox.metadata))
    assert page.sandboxes == (sandbox,)
