"""`firebrick audit …`: take the audit log out, and prove that nobody touched it."""

import json
import sys
from typing import Annotated

import typer

from firebrick.cli.client import open_admin_client
from firebrick.cli.console import err, reports_errors

app = typer.Typer(help="The log of every change: who, what, when, with what outcome.", no_args_is_help=True)

PAGE = 1000


@app.command("export")
@reports_errors
def export(
    after: Annotated[int, typer.Option(help="Only lines after this sequence number.")] = 0,
    team: Annotated[str | None, typer.Option(help="Only lines of the team with this id.")] = None,
) -> None:
    """Print the log as JSON, one line each, oldest first."""
    client = open_admin_client()
    while True:
        params = {"after": after, "limit": PAGE} | ({"teamID": team} if team else {})
        lines = client.request("GET", "/admin/audit", params=params).json()
        for line in lines:
            print(json.dumps(line, ensure_ascii=False))
        if len(lines) < PAGE:
            return
        after = lines[-1]["sequence"]


@app.command("verify")
@reports_errors
def verify(
    contains: Annotated[
        str | None, typer.Option(help="`sequence:mac` of an earlier verify; the log must still hold it.")
    ] = None,
) -> None:
    """Check every line against the chain. Status 1 when something was changed, removed or added; each is named.

    Keep the printed `sequence:mac` somewhere else: a log that is set back to an older state as a whole is found
    only by what it no longer contains.
    """
    client = open_admin_client()
    report = client.request("GET", "/admin/audit/verify").json()
    problems = list(report["problems"])
    if contains:
        number, _, mac = contains.partition(":")
        params = {"after": max(int(number) - 1, 0), "limit": 1}
        found = client.request("GET", "/admin/audit", params=params).json()
        if not found or (found[0]["sequence"], found[0]["mac"]) != (int(number), mac):
            problems.append(f"line {number} is not the one that was there: the log was set back or cut")
    for problem in problems:
        err.print(f"firebrick: audit log: {problem}", markup=False, soft_wrap=True)
    if problems:
        sys.exit(1)
    print(f"{report['lineCount']} lines, untouched. {report['lastSequence']}:{report['lastMac']}")
