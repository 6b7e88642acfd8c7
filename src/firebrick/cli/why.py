"""`firebrick why`: what happened to a sandbox, as a timeline."""

import json
from datetime import datetime
from typing import Annotated, Any

import typer

from firebrick.cli.client import open_client
from firebrick.cli.console import reports_errors, table


@reports_errors
def why(
    sandbox: Annotated[str | None, typer.Argument(metavar="[SANDBOX]", help="Id; none lists the latest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The API's answer.")] = False,
) -> None:
    """Tell what happened to a sandbox: its steps with their times, pauses, end, and by whom. Without an id, list the
    latest ends and failed creates."""
    client = open_client()
    if sandbox is None:
        endings = client.request("GET", "/sandboxes/endings").json()
        if as_json:
            print(json.dumps(endings))
        else:
            rows = [(item["sandboxID"], clock(item["at"]), item["reason"], item["detail"]) for item in endings]
            table(("sandbox", "at", "why", "detail"), rows)
        return
    found = client.request("GET", f"/sandboxes/{sandbox}/why").json()
    if as_json:
        print(json.dumps(found))
        return
    for line in timeline(found):
        print(line)


def timeline(found: dict[str, Any]) -> list[str]:
    """The lines that tell an autopsy."""
    lines = [f"{found['sandboxID']}: {found['summary']}"]
    if found["createdAt"]:
        lines.append(f"  {clock(found['createdAt'])}  asked for")
    for event in found["events"]:
        said = " ".join(filter(None, (event["reason"], f"({event['detail']})" if event["detail"] else "")))
        by = f", by {event['actor']}" if event["actor"] and "by " not in event["detail"] else ""
        lines.append(f"  {clock(event['at'])}  {event['kind'].replace('_', ' ')}{': ' + said if said else ''}{by}")
        if event["kind"] != "out_of_memory":
            lines += [f"      {line}" for line in facts(event["facts"])]
    return lines


def facts(found: dict[str, Any]) -> list[str]:
    """Figures of one event; what is nested one level (times of steps, reasons of nodes) on a line each."""
    lines = []
    for name, value in found.items():
        if name == "steps_ms":
            lines.append("steps " + ", ".join(f"{step} {ms:g} ms" for step, ms in value.items()))
        elif isinstance(value, dict):
            lines += [f"{name.removesuffix('s')} {key}: {text}" for key, text in value.items()]
        elif value not in ("", None):
            lines.append(f"{name.replace('_', ' ')} {value}")
    return lines


def clock(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
