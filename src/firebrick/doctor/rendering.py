"""The report for people: what works, what does not, why, and the command that mends it."""

import shlex

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from firebrick.doctor.doctor import Report
from firebrick.doctor.result import ProbeResult, ProbeStatus

_MARKS = {
    ProbeStatus.OK: "[green]ok[/green]",
    ProbeStatus.WARN: "[yellow]warn[/yellow]",
    ProbeStatus.FAIL: "[red]fail[/red]",
    ProbeStatus.ABSENT: "[dim]absent[/dim]",
}


def show_report(report: Report, console: Console) -> None:
    """Print the table, then what to do."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "what", "found"):
        table.add_column(title, overflow="fold")
    for result in report.results:
        table.add_row(_MARKS[result.status], escape(result.name), _found(result))
    console.print(table)
    console.print()
    console.print(f"[bold]{escape(verdict(report))}[/bold]")


def verdict(report: Report) -> str:
    """One sentence."""
    if report.is_able and report.runtime is not None:
        return f"Sandboxes run here, on {report.runtime} ({report.runtime.isolation})."
    failed = [result.name for result in report.results if result.required and result.status is ProbeStatus.FAIL]
    if failed:
        return f"Sandboxes cannot run here yet: {', '.join(failed)}."
    if report.wanted == "auto":
        return "Sandboxes cannot run here yet: no runtime works."
    return f"Sandboxes cannot run here yet: runtime {report.wanted} does not work."


def _found(result: ProbeResult) -> str:
    lines = [escape(result.summary)]
    if result.status is not ProbeStatus.OK:
        if result.why:
            lines.append(f"[dim]{escape(result.why)}[/dim]")
        lines += [f"  $ {escape(shlex.join(argv))}" for argv in (*result.mend, *result.advice)]
    return "\n".join(lines)
