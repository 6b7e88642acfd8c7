"""The audit log holds every change, and names what was done to it."""

import pytest
from sqlalchemy import text

from firebrick.control.audit import AuditReport
from tests.support.control import Running
from tests.support.owners import open_api


async def test_every_change_has_its_line(running: Running) -> None:
    """Who, what, which object, request id and outcome, of changes that worked and of those that were refused; reading
    and malformed requests leave none."""
    api = open_api(running)
    async with api.http:
        team_id, key = await api.new_team("acme")
        sandbox = await api.ok("POST", "/v2/sandboxes", key | {"X-Request-Id": "r1"}, json={"templateID": "base"})
        path = f"/sandboxes/{sandbox['sandboxID']}"
        await api.ok("GET", path, key)
        assert await api.status("POST", f"{path}/timeout", key, json={"timeout": "x"}) == 400
        await api.ok("DELETE", path, key)
        assert await api.status("DELETE", path, key) == 404
        lines = await api.ok("GET", "/admin/audit", api.admin)
        told = [(line["action"], line["outcome"]) for line in lines]
        assert told == [
            ("team.create", "ok"), ("key.create", "ok"), ("POST /v2/sandboxes", "ok"),
            ("DELETE /sandboxes/{sandboxID}", "ok"), ("DELETE /sandboxes/{sandboxID}", "not_found"),
        ]  # fmt: skip
        create = lines[2]
        assert (create["objectID"], create["requestID"], create["teamID"]) == (sandbox["sandboxID"], "r1", team_id)
        mask = (await api.ok("GET", "/api-keys", api.admin | {"X-Team-ID": team_id}))[0]["mask"]
        shown = f"key {mask['prefix']}{mask['maskedValuePrefix']}…{mask['maskedValueSuffix']}"
        assert [line["actor"] for line in lines] == ["admin", "admin", *[shown] * 3]
        assert key["X-API-Key"] not in str(lines)
        assert (await api.ok("GET", "/admin/audit/verify", api.admin))["problems"] == []
    await running.wait_ended(sandbox["sandboxID"])


async def tampered(running: Running, statement: str) -> AuditReport:
    """The report after five lines and one statement behind our back."""
    for number in range(5):
        await running.control.audit.record("test", team_id="t", object_id=str(number), outcome="ok")
    async with running.control.platform.database.write() as tx:
        await tx.execute(text(statement))
    return await running.control.audit.verify()


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("SELECT 1", None),
        ("UPDATE audit_log SET actor = 'admin' WHERE sequence = 3", "line 3 (test by admin) was changed"),
        ("UPDATE audit_log SET outcome = 'x' WHERE sequence = 1", "line 1 (test by system) was changed"),
        ("UPDATE audit_log SET mac = 'x' WHERE sequence = 5", "line 5 (test by system) was changed"),
        ("DELETE FROM audit_log WHERE sequence IN (2, 3)", "lines 2 to 3 are missing"),
        ("DELETE FROM audit_log WHERE sequence = 1", "line 1 is missing"),
        ("DELETE FROM audit_log WHERE sequence = 5", "line 5 is missing"),
        ("DELETE FROM audit_log", "lines 1 to 5 are missing"),
        (
            "INSERT INTO audit_log SELECT 6, at, actor, team_id, action, object_id, request_id, outcome, detail, mac"
            " FROM audit_log WHERE sequence = 5",
            "line 6 was added behind the end",
        ),
        ("UPDATE audit_head SET last_sequence = 4", "the record of both ends of the log was changed"),
        ("UPDATE audit_head SET first_sequence = 2", "the record of both ends of the log was changed"),
    ],
)
async def test_tampering_is_found_and_named(running: Running, statement: str, problem: str | None) -> None:
    """Whatever is changed, removed or added without the key is named in the report."""
    report = await tampered(running, statement)
    if problem is None:
        assert (report.problems, report.line_count) == ((), 5)
    else:
        assert problem in report.problems


async def test_old_lines_are_let_go_and_the_chain_holds(running: Running) -> None:
    """After the kept time old lines are gone, the rest still proves itself, and the last line always stays."""
    audit = running.control.audit
    for number in range(3):
        await audit.record("old", team_id="t", object_id=str(number), outcome="ok")
    running.world.clock.advance(366 * 86_400)
    await audit.record("new", team_id="t", object_id="x", outcome="ok")
    await audit.forget_old()
    report = await audit.verify()
    assert (report.first_sequence, report.line_count, report.problems) == (4, 1, ())
    running.world.clock.advance(366 * 86_400)
    await audit.forget_old()
    assert (await audit.verify()).line_count == 1
