"""`firebrick sandbox …`: create, list, exec, kill, logs, in docker's habits. Pausing is in `sandbox_pause.py`."""

import json
import os
import shlex
import sys
import threading
from datetime import UTC, datetime
from time import sleep
from typing import Annotated, Any

import typer

from firebrick.cli import sandbox_pause
from firebrick.cli.client import TIMEOUT_S, Client, open_client, reach
from firebrick.cli.console import err, fail, out, pairs, reports_errors, table
from firebrick.config import load_config
from firebrick.model.errors import FirebrickError, NotFound

app = typer.Typer(help="Create, look into, pause and end sandboxes.", no_args_is_help=True)
sandbox_pause.register(app)

FOLLOW_EVERY_S = 0.5
LIST_LIMIT = 1000

SandboxArgument = Annotated[str, typer.Argument(metavar="SANDBOX", help="Sandbox id.")]


@app.command("create")
@reports_errors
def create(
    template: Annotated[str, typer.Argument(help="Template name, name:tag or id.")] = "base",
    timeout: Annotated[int, typer.Option("--timeout", "-t", help="Lifetime in seconds.")] = 300,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="KEY=VALUE; may be repeated.")] = None,
    metadata: Annotated[list[str] | None, typer.Option("--label", "-l", help="KEY=VALUE metadata.")] = None,
    internet: Annotated[bool, typer.Option(help="Whether the sandbox reaches the internet.")] = True,
    on_timeout: Annotated[str, typer.Option(help="What happens at the end: kill or pause.")] = "kill",
    auto_resume: Annotated[bool, typer.Option("--auto-resume", help="Traffic resumes it when paused.")] = False,
    idle_timeout: Annotated[
        int | None, typer.Option(help="End or pause it after so many seconds in which it did nothing.")
    ] = None,
    disk: Annotated[int | None, typer.Option(help="Its disk in MiB: whole GiB, larger than its source's.")] = None,
    disk_only: Annotated[bool, typer.Option("--disk-only", help="Start anew on a snapshot's files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the API's whole answer.")] = False,
) -> None:
    """Create a sandbox and print its id."""
    body: dict[str, Any] = {
        "templateID": template,
        "timeout": timeout,
        "envVars": pairs("--env", env or []),
        "metadata": pairs("--label", metadata or []),
    }
    if on_timeout not in ("kill", "pause"):
        fail(f"--on-timeout must be kill or pause, not '{on_timeout}'")
    if on_timeout == "pause":
        body["autoPause"] = True
    if auto_resume:
        body["autoResume"] = {"enabled": True}
    if idle_timeout is not None:
        body["metadata"]["firebrick.idleTimeout"] = str(idle_timeout)
    if disk is not None:
        body["metadata"]["firebrick.diskMiB"] = str(disk)
    if disk_only:
        body["metadata"]["firebrick.memory"] = "false"
    if not internet:
        body["allow_internet_access"] = False
    answer = open_client().request("POST", "/v2/sandboxes", json=body).json()
    print(json.dumps(answer) if as_json else answer["sandboxID"])


@app.command("list")
@app.command("ls", hidden=True)
@reports_errors
def list_sandboxes(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Ids only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The API's answer.")] = False,
    limit: Annotated[int, typer.Option(help="Most to show.")] = LIST_LIMIT,
) -> None:
    """List sandboxes, newest first."""
    found = open_client().pages("/v2/sandboxes", {}, limit=limit)
    if as_json:
        print(json.dumps(found))
    elif quiet:
        for item in found:
            print(item["sandboxID"])
    else:
        rows = [
            (
                item["sandboxID"],
                item.get("alias") or item["templateID"],
                _state(item),
                item.get("runtime", ""),
                f"{item['cpuCount']} CPU, {item['memoryMB']} MiB",
                _ago(item["startedAt"]),
                _left(item["endAt"]) if item["state"] == "running" else "",
            )
            for item in found
        ]
        table(("sandbox", "template", "state", "runtime", "size", "started", "time left"), rows)


@app.command("kill")
@app.command("rm", hidden=True)
@reports_errors
def kill(sandboxes: Annotated[list[str], typer.Argument(metavar="SANDBOX...", help="Sandbox ids.")]) -> None:
    """End sandboxes now. Prints each id that was ended; status 1 when one did not exist."""
    client = open_client()
    missing = 0
    for sandbox_id in sandboxes:
        try:
            client.request("DELETE", f"/sandboxes/{sandbox_id}")
        except NotFound as exc:
            missing += 1
            err.print(f"firebrick: {exc.message}", markup=False, soft_wrap=True)
        else:
            print(sandbox_id)
    if missing:
        sys.exit(1)


@app.command("logs")
@reports_errors
def logs(
    sandbox: SandboxArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sandbox ends.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", help="Most lines to start with.")] = 1000,
) -> None:
    """Print what the sandbox's agent has logged: starts and ends of processes, and its console."""
    client = open_client()
    cursor, seen = 0, set[str]()
    while True:
        params = {"cursor": cursor, "limit": min(tail, 1000), "direction": "forward"}
        entries = client.request("GET", f"/v2/sandboxes/{sandbox}/logs", params=params).json()["logs"]
        for entry in entries:
            line = json.dumps(entry, sort_keys=True)
            if line not in seen:
                _print_entry(entry)
                seen.add(line)
        if entries:
            # Lines of the newest millisecond may still come: ask for it again and drop what was printed.
            newest = int(datetime.fromisoformat(entries[-1]["timestamp"]).timestamp() * 1000)
            if newest != cursor:
                cursor, seen = newest, {json.dumps(entry, sort_keys=True) for entry in entries}
        if not follow or not _is_there(client, sandbox):
            return
        sleep(FOLLOW_EVERY_S)


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@reports_errors
def exec_command(
    sandbox: SandboxArgument,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="Program and arguments.")],
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Pass our standard input on.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it and print its pid.")] = False,
    user: Annotated[str | None, typer.Option("--user", "-u", help="User inside (default: user).")] = None,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w", help="Directory inside.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="KEY=VALUE; may be repeated.")] = None,
) -> None:
    """Run a command in a sandbox; its exit status becomes ours."""
    # Imported here: the SDK takes most of a second, and only this command needs it.
    from e2b import CommandExitException, Sandbox
    from e2b.exceptions import SandboxException

    config = load_config()
    target, client = reach(config), open_client()
    if client.request("GET", f"/sandboxes/{sandbox}").json()["state"] == "paused":
        # Without a timeout: it then lives as long as it was configured to.
        client.request("POST", f"/v2/sandboxes/{sandbox}/connect", json={})
    options: dict[str, Any] = {"api_key": target.api_key, "api_url": target.api_url, "sandbox_url": target.sandbox_url}
    try:
        # A timeout of 1 s never shortens what the sandbox has left: connect only extends.
        box = Sandbox.connect(sandbox, timeout=1, request_timeout=config.patient_s(TIMEOUT_S), **options)
        handle = box.commands.run(
            shlex.join(command),
            background=True,
            stdin=interactive,
            user=user,
            cwd=workdir,
            envs=pairs("--env", env or []),
            timeout=0,
        )
        if detach:
            print(handle.pid)
            handle.disconnect()
            return
        if interactive:
            threading.Thread(target=_pump_stdin, args=(box, handle.pid), daemon=True).start()
        for stdout, stderr, _ in handle:
            if stdout is not None:
                sys.stdout.write(stdout)
                sys.stdout.flush()
            if stderr is not None:
                sys.stderr.write(stderr)
                sys.stderr.flush()
        handle.wait()
    except CommandExitException as exc:
        sys.exit(exc.exit_code if exc.exit_code >= 0 else 137)
    except SandboxException as exc:
        fail(str(exc))


def _pump_stdin(box: Any, pid: int) -> None:
    while chunk := os.read(sys.stdin.fileno(), 65536):
        box.commands.send_stdin(pid, chunk)
    box.commands.close_stdin(pid)


def _is_there(client: Client, sandbox: str) -> bool:
    try:
        client.request("GET", f"/sandboxes/{sandbox}")
    except FirebrickError:
        return False
    return True


def _print_entry(entry: dict[str, Any]) -> None:
    fields = " ".join(f"{key}={value}" for key, value in sorted(entry.get("fields", {}).items()))
    out.print(
        f"{entry['timestamp']} {entry['level']:<5} {entry['message']} {fields}".rstrip(), markup=False, soft_wrap=True
    )


def _state(item: dict[str, Any]) -> str:
    if item["state"] == "paused":
        return "paused" if item.get("keepsMemory") else "paused (disk only)"
    return str(item["state"])


def _ago(timestamp: str) -> str:
    return _span((datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()) + " ago"


def _left(timestamp: str) -> str:
    return _span((datetime.fromisoformat(timestamp) - datetime.now(UTC)).total_seconds())


def _span(seconds: float) -> str:
    count = max(0, round(seconds))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if count >= 2 * size:
            return f"{count // size} {unit}"
    return f"{count} s"
