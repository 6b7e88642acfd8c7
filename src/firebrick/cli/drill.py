"""`firebrick drill`: break an instance of its own in every way we know, and print what was lost."""

import signal
import sys
from time import perf_counter
from typing import Annotated

import typer

from firebrick.cli.console import err, out, reports_errors, table
from firebrick.cli.drill_faults import Fault, all_faults
from firebrick.cli.drill_instance import Drilled, Lost, NotOffered, drilled_instance
from firebrick.config import load_config

NOTHING = "nothing"


@reports_errors
def drill(
    sample: Annotated[bool, typer.Option("--sample", help="A few faults only: a minute instead of a coffee.")] = False,
    runtime: Annotated[str, typer.Option(help="auto, gvisor or container.")] = "auto",
    only: Annotated[str, typer.Option(help="Faults with this word in their line only.")] = "",
) -> None:
    """Break a throw-away instance on this machine and tell what was lost, which must be nothing.

    Templates and tools of the instance in the data directory are used, its sandboxes are not touched. Status 1 when
    anything was lost.
    """
    matching = [fault for fault in all_faults() if only in f"{fault.name} {fault.during}"]
    chosen = [fault for fault in matching if fault.is_sample or not sample]
    rows: list[tuple[str, str, str]] = []
    absent: dict[str, str] = {}
    began = perf_counter()
    # Whoever ends the drill early wants its instance gone as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with drilled_instance(load_config(), runtime) as drilled:
        for number, fault in enumerate(chosen, 1):
            operation = fault.during.partition(":")[0]
            err.print(f"{number}/{len(chosen)} {fault.name}, {fault.during}", markup=False, highlight=False)
            lost = f"not tried: {absent[operation]}" if operation in absent else strike(drilled, fault)
            if lost.startswith("not offered"):
                absent[operation] = lost
            rows.append((fault.name, fault.during, lost))
    table(("fault", "during", "lost"), rows)
    bad = [row for row in rows if not row[2].startswith((NOTHING, "not "))]
    out.print(f"\n{len(rows)} faults in {perf_counter() - began:.0f} s, {len(bad)} with a loss.", highlight=False)
    if bad:
        sys.exit(1)


def strike(drilled: Drilled, fault: Fault) -> str:
    """What was lost, in words for the table."""
    try:
        detail = fault.strike(drilled)
    except NotOffered as exc:
        return f"not offered here: {exc.message}"
    except Lost as exc:
        return exc.message
    return f"{NOTHING}{f' ({detail})' if detail else ''}"
