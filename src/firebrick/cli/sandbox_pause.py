"""`firebrick sandbox pause|resume|snapshot|snapshots|fork|recover`: a sandbox between running and paused."""

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

import typer

from firebrick.cli.client import open_client
from firebrick.cli.console import err, reports_errors, table
from firebrick.model.errors import FirebrickError

SandboxArgument = Annotated[str, typer.Argument(metavar="SANDBOX", help="Sandbox id.")]
SandboxesArgument = Annotated[list[str], typer.Argument(metavar="SANDBOX...", help="Sandbox ids.")]
LIST_LIMIT = 1000


def register(app: typer.Typer) -> None:
    """Add the commands to `firebrick sandbox`."""
    for command in (pause, resume, snapshot, snapshots, fork, recover):
        app.command(command.__name__)(command)
    app.command("unpause", hidden=True)(resume)
    app.command("commit", hidden=True)(snapshot)


@reports_errors
def pause(
    sandboxes: SandboxesArgument,
    disk_only: Annotated[bool, typer.Option("--disk-only", help="Keep the files, end the processes.")] = False,
) -> None:
    """Pause sandboxes: no CPU is used until they are resumed. Prints each id."""
    client = open_client()

    def act(sandbox: str) -> str:
        client.request("POST", f"/sandboxes/{sandbox}/pause", json={"memory": not disk_only})
        return sandbox

    _each(sandboxes, act)


@reports_errors
def resume(
    sandboxes: SandboxesArgument,
    timeout: Annotated[
        int | None, typer.Option("--timeout", "-t", help="Lifetime in seconds (default: as configured).")
    ] = None,
    disk_only: Annotated[bool, typer.Option("--disk-only", help="Start anew on the files.")] = False,
) -> None:
    """Resume paused sandboxes; one that runs is left running. Prints each id."""
    client = open_client()
    body: dict[str, Any] = {"memory": not disk_only} | ({} if timeout is None else {"timeout": timeout})

    def act(sandbox: str) -> str:
        client.request("POST", f"/v2/sandboxes/{sandbox}/connect", json=body)
        return sandbox

    _each(sandboxes, act)


@reports_errors
def snapshot(
    sandbox: SandboxArgument,
    name: Annotated[str | None, typer.Argument(help="NAME or NAME:TAG; none: named by its id.")] = None,
) -> None:
    """Save a sandbox's state; print the id that `create` takes. The sandbox goes on."""
    body = {} if name is None else {"name": name}
    print(open_client().request("POST", f"/sandboxes/{sandbox}/snapshots", json=body).json()["snapshotID"])


@reports_errors
def snapshots(
    remove: Annotated[list[str] | None, typer.Option("--rm", metavar="SNAPSHOT", help="Delete it instead.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Ids only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The API's answer.")] = False,
) -> None:
    """List snapshots, newest first, or delete some."""
    client = open_client()
    if remove:

        def act(name: str) -> str:
            client.request("DELETE", f"/templates/{quote(name, safe='')}")
            return name

        _each(remove, act)
        return
    found = client.pages("/snapshots", {}, limit=LIST_LIMIT)
    if as_json:
        print(json.dumps(found))
    elif quiet:
        for item in found:
            print(item["snapshotID"])
    else:
        table(("snapshot", "names"), [(item["snapshotID"], ", ".join(item["names"])) for item in found])


@reports_errors
def fork(
    sandbox: SandboxArgument,
    count: Annotated[int, typer.Option("--count", "-n", help="How many, 1 to 100.")] = 1,
    timeout: Annotated[int, typer.Option("--timeout", "-t", help="Lifetime in seconds.")] = 300,
) -> None:
    """Create sandboxes that start as this one is now. Prints their ids; status 1 when some could not be started."""
    results = (
        open_client().request("POST", f"/sandboxes/{sandbox}/fork", json={"count": count, "timeout": timeout}).json()
    )
    for result in results:
        if "sandbox" in result:
            print(result["sandbox"]["sandboxID"])
        else:
            err.print(f"firebrick: {result['error']['message']}", markup=False, soft_wrap=True)
    if any("sandbox" not in result for result in results):
        sys.exit(1)


@reports_errors
def recover(sandboxes: SandboxesArgument) -> None:
    """Bring back sandboxes that their timeout ended, paused, with their files. Prints each id."""
    client = open_client()

    def act(sandbox: str) -> str:
        client.request("POST", f"/sandboxes/{sandbox}/recover")
        return sandbox

    _each(sandboxes, act)


def _each(subjects: list[str], act: Callable[[str], str]) -> None:
    """Do it for all, print what it was done for, report the others; status 1 when there were any."""
    failed = 0
    for subject in subjects:
        try:
            print(act(subject))
        except FirebrickError as exc:
            failed += 1
            err.print(f"firebrick: {exc.message}", markup=False, soft_wrap=True)
    if failed:
        sys.exit(1)
