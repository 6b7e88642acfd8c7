"""`firebrick snapshot …`: list, delete, and move between instances: `… export ID - | ssh there … import -`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from firebrick.cli import sandbox_pause
from firebrick.cli.client import open_admin_client, open_client
from firebrick.cli.console import err, fail, reports_errors
from firebrick.cli.owners import team_id

app = typer.Typer(help="Saved states of sandboxes: list, delete, move to another instance.", no_args_is_help=True)

PIECE_BYTES = 1 << 20
PIPE = "-"

SnapshotArgument = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Id, or NAME or NAME:TAG.")]


@app.command("list")
@app.command("ls", hidden=True)
def list_snapshots(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Ids only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The API's answer.")] = False,
) -> None:
    """List snapshots, newest first."""
    sandbox_pause.snapshots(remove=None, quiet=quiet, as_json=as_json)


@app.command("delete")
@app.command("rm", hidden=True)
def delete(snapshots: Annotated[list[str], typer.Argument(metavar="SNAPSHOT...", help="Ids or names.")]) -> None:
    """Delete snapshots; sandboxes that came from them live on. Prints each."""
    sandbox_pause.snapshots(remove=snapshots, quiet=False, as_json=False)


@app.command("export")
@reports_errors
def export(
    snapshot: SnapshotArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; -: standard output.")] = PIPE,
) -> None:
    """Write a snapshot to a file, for `import`. It holds what was in memory and on the disk: secrets too."""
    client = open_client()
    path = f"/snapshots/{quote(snapshot, safe='')}/archive"
    if file == PIPE:
        if sys.stdout.isatty():
            fail("It would fill the terminal. Name a file, or pipe it on.", status=2)
        client.download(path, sys.stdout.buffer.write)
        sys.stdout.buffer.flush()
        return
    draft = Path(f"{file}.part")
    try:
        # NOTE: private from its first byte.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        fail(f"{draft} cannot be made: {exc.strerror}.")
    try:
        with os.fdopen(descriptor, "wb") as sink:
            client.download(path, sink.write)
            sink.flush()
            os.fsync(sink.fileno())
        draft.rename(file)
    except OSError as exc:
        fail(f"{file} could not be written: {exc.strerror}.")
    finally:
        draft.unlink(missing_ok=True)
    print(file)


@app.command("import")
@reports_errors
def import_snapshot(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `export` wrote; -: standard input.")] = PIPE,
    name: Annotated[str | None, typer.Option(help="NAME or NAME:TAG here; else as it was called there.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="As the operator: you know who made it, whoever sealed it.")
    ] = False,
    team: Annotated[str, typer.Option("--team", "-t", help="With --trust: for this team.")] = "default",
) -> None:
    """Make a snapshot of an exported one; print the id that `create` takes."""
    options: dict[str, Any] = {} if name is None else {"params": {"name": name}}
    if trust:
        client = open_admin_client()
        options["headers"] = {"X-Team-ID": team_id(client, team)}
    else:
        client = open_client()
    made = client.upload("/snapshots/archive", _pieces(file), **options).json()
    if made.get("memoryRefusal"):
        err.print(
            f"firebrick: its processes cannot go on here. {made['memoryRefusal']} `firebrick sandbox create "
            "--disk-only` starts anew from its disk.",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    print(made["snapshotID"])


def _pieces(file: str) -> Iterator[bytes]:
    """What to send, as it is read."""
    try:
        source = sys.stdin.buffer if file == PIPE else Path(file).open("rb")  # noqa: SIM115 - closed below
    except OSError as exc:
        fail(f"{file} cannot be read: {exc.strerror}.")
    with source:
        while piece := source.read(PIECE_BYTES):
            yield piece
