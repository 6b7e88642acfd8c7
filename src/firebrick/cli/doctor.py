"""`firebrick doctor`: what works on this machine, what does not, why, and the command that mends it."""

import asyncio
import json
import sys
from typing import Annotated

import typer

from firebrick.cli.console import out, reports_errors
from firebrick.cli.probes import runtime_probes
from firebrick.config import load_config
from firebrick.doctor.doctor import examine
from firebrick.doctor.rendering import show_report


@reports_errors
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Try everything that sandboxes need on this machine. Exit status 1 when none could run."""
    config = load_config()
    report = asyncio.run(examine(config, runtime_probes=runtime_probes(config)))
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        show_report(report, out)
    sys.exit(report.exit_status)
