"""Users, memberships, tokens, keys and the audit log keep what they are given, on each database."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from firebrick.control.audit import ChainCheck
from firebrick.model.errors import AlreadyExists, LimitExceeded, RateExceeded
from firebrick.model.ids import KeyId, TeamId, TokenId, UserId
from firebrick.model.team import AccessToken, ApiKey, User
from firebrick.store.audit import AuditLine, audit_append, audit_fetch_head, audit_list
from firebrick.store.database import Database
from firebrick.store.quotas import quota_check
from firebrick.store.teams import key_delete, key_fetch_by_digest, key_insert, key_list, key_note_used, team_update
from firebrick.store.users import (
    member_insert,
    member_list_teams,
    token_delete,
    token_fetch_by_digest,
    token_insert,
    user_delete,
    user_fetch_by_email,
    user_insert,
)
from tests.support.rows import LIMITS, NOW, TEAM_ID, make_team

ANN = User(user_id=UserId("u1"), email="ann@example.org", created_at=NOW, subject="idp 1")
LINE = AuditLine(at=NOW, actor="é", team_id="t", action="a", object_id="o", request_id="r", outcome="ok")
SECRET = b"k" * 32


async def test_users_come_and_go(database: Database) -> None:
    """A user has teams and tokens, is unique by address, and takes its tokens along when it goes."""
    token = AccessToken(token_id=TokenId("t1"), user_id=ANN.user_id, name="n", mask="m", created_at=NOW)
    async with database.write() as tx:
        await user_insert(tx, ANN)
        await member_insert(tx, TEAM_ID, ANN.user_id, is_default=True)
        await member_insert(tx, TEAM_ID, ANN.user_id, is_default=True)
        await token_insert(tx, token, digest="d")
        assert await token_fetch_by_digest(tx, "d") == (token, ANN)
        assert [item.is_default for item in await member_list_teams(tx, ANN.user_id)] == [True]
        assert not await token_delete(tx, UserId("u2"), token.token_id)
    with pytest.raises(AlreadyExists):
        async with database.write() as tx:
            await user_insert(tx, replace(ANN, user_id=UserId("u2"), subject=None))
    async with database.write() as tx:
        assert await user_delete(tx, ANN.user_id)
        assert await user_fetch_by_email(tx, ANN.email) is None
        assert await token_fetch_by_digest(tx, "d") is None


async def test_keys_are_their_teams(database: Database) -> None:
    """Another team can neither see nor remove a key; the last use is kept."""
    key = ApiKey(key_id=KeyId("k1"), team_id=TEAM_ID, name="n", mask="m", created_at=NOW)
    async with database.write() as tx:
        await key_insert(tx, key, digest="d")
        await key_note_used(tx, {key.key_id: NOW, KeyId("gone"): NOW})
        assert await key_list(tx, TEAM_ID) == (replace(key, last_used_at=NOW),)
        assert await key_delete(tx, TeamId("team_b"), key.key_id) is None
        assert await key_delete(tx, TEAM_ID, key.key_id) is not None
        assert await key_fetch_by_digest(tx, "d") is None


async def test_creates_per_second_hold_under_a_crowd(database: Database) -> None:
    """Of many creates at one moment only as many pass as the bucket holds; time fills it again."""
    async with database.write() as tx:
        await team_update(tx, make_team(max_creates_per_s=3.0, max_sandboxes=100))

    async def passes(after_s: float = 0) -> bool:
        try:
            async with database.write() as tx:
                await quota_check(tx, TEAM_ID, LIMITS, now=NOW + timedelta(seconds=after_s))
        except RateExceeded:
            return False
        return True

    assert sum(await asyncio.gather(*(passes() for _ in range(10)))) == 3
    assert await passes(0.5)
    assert not await passes(0.5)
    assert sum([await passes(3600) for _ in range(5)]) == 3
    assert await passes(-3600), "a clock that was set back must not lock anybody out"


async def test_limits_of_memory_and_disk(database: Database) -> None:
    """Each sum has its own limit, and a limit of 0 is none."""
    for changes, word in (
        ({"max_memory_mib": 511}, "memory"), ({"max_disk_mib": 1}, "disk"), ({"max_sandboxes": 0}, "concurrent"),
    ):  # fmt: skip
        async with database.write() as tx:
            await team_update(tx, make_team(**changes))
        with pytest.raises(LimitExceeded, match=word):
            async with database.write() as tx:
                await quota_check(tx, TEAM_ID, LIMITS, now=NOW)
    async with database.write() as tx:
        await team_update(tx, make_team())
        await quota_check(tx, TEAM_ID, LIMITS, now=NOW)


async def test_the_chain_holds_under_concurrent_writers(database: Database) -> None:
    """Lines that are appended at once get one order without a gap, and prove themselves."""

    async def append() -> None:
        async with database.write() as tx:
            await audit_append(tx, SECRET, LINE)

    await asyncio.gather(*(append() for _ in range(10)))
    async with database.read() as tx:
        check = ChainCheck(SECRET, await audit_fetch_head(tx))
        check.take(await audit_list(tx, after=0, limit=100))
    report = check.finish()
    assert (report.line_count, report.last_sequence, report.problems) == (10, 10, ())
