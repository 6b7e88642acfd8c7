"""What follows from the probes: the runtime, the verdict, the commands."""

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from firebrick.cli.probes import RUNSC_MEND
from firebrick.doctor.doctor import Report, choose_runtime
from firebrick.doctor.mend import mend
from firebrick.doctor.packages import APT_INSTALL
from firebrick.doctor.rendering import show_report, verdict
from firebrick.doctor.result import ProbeResult, ProbeStatus


def result(name: str, status: ProbeStatus = ProbeStatus.OK, **fields: object) -> ProbeResult:
    return ProbeResult(name=name, status=status, summary="seen", **fields)  # type: ignore[arg-type]


BOTH = (result("gvisor"), result("container"))
BROKEN = (result("gvisor", ProbeStatus.FAIL), result("container"))


@pytest.mark.parametrize(
    ("results", "wanted", "chosen"),
    [
        (BOTH, "auto", "gvisor"),
        (BROKEN, "auto", "container"),
        (BROKEN, "gvisor", None),
        (BOTH, "container", "container"),
        ((), "auto", None),
        ((), "sim", "sim"),
        ((result("sim"),), "auto", None),
    ],
)
def test_auto_takes_the_strongest_proven(results: tuple[ProbeResult, ...], wanted: str, chosen: str | None) -> None:
    """`auto` never takes what is not proven, nor the simulation; a wish is granted only if it works."""
    assert choose_runtime(results, wanted) == chosen


def test_a_required_failure_decides() -> None:
    """With a runtime but without what it stands on, no sandbox can run: exit status 1."""
    able = Report(results=BOTH, wanted="auto")
    unable = Report(results=(*BOTH, result("cgroups", ProbeStatus.FAIL, required=True)), wanted="auto")
    assert (able.exit_status, unable.exit_status) == (0, 1)
    assert verdict(unable) == "Sandboxes cannot run here yet: cgroups."


def test_the_report_can_be_json() -> None:
    """`--json` holds every probe with its commands."""
    lacking = result("package x", ProbeStatus.FAIL, mend=(("apt-get", "install", "x"),))
    document = json.loads(json.dumps(Report(results=(*BOTH, lacking), wanted="auto").as_dict()))
    assert document["runtimes"] == ["gvisor", "container"]
    assert document["probes"][2]["mend"] == [["apt-get", "install", "x"]]


def test_people_see_why_and_the_command() -> None:
    """A failed probe's reason and command are shown, whatever brackets they hold."""
    broken = result("disk", ProbeStatus.FAIL, why="[all] full", mend=(("rm", "a file"),))
    console = Console(record=True, width=100, file=None, quiet=False)
    with console.capture() as shown:
        show_report(Report(results=(broken,), wanted="auto"), console)
    assert "[all] full" in shown.get()
    assert "$ rm 'a file'" in shown.get()


async def test_mending_is_one_apt_call() -> None:
    """All missing packages are installed by one command; what is not run is told exactly."""
    missing = [result(f"package {name}", ProbeStatus.FAIL, mend=((*APT_INSTALL, name),)) for name in ("a", "b")]
    report = Report(
        results=(*missing, result("inotify", ProbeStatus.WARN, mend=(("sysctl", "-w", "x=1"),))), wanted="auto"
    )
    assert await mend(report, run_them=False) == [
        "apt-get update",
        "apt-get install --yes --no-install-recommends a b",
        "sysctl -w x=1",
    ]


async def test_a_mend_whose_program_is_missing_stops_nothing() -> None:
    """A minimal machine has no modprobe; its probe stays as it is, and the rest goes on."""
    report = Report(results=(result("x", ProbeStatus.WARN, mend=(("firebrick-no-such-program", "y"),)),), wanted="auto")
    assert await mend(report, run_them=True) == ["firebrick-no-such-program y"]


async def test_mending_never_brings_up_what_is_coming_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of our own that would mend something is told and not run: `firebrick up` is what asks for the mend."""
    program = tmp_path / "firebrick"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    report = Report(results=(result("gvisor", ProbeStatus.ABSENT, mend=RUNSC_MEND),), wanted="auto")
    assert await mend(report, run_them=True) == ["firebrick up"]
    assert not (tmp_path / "ran").exists()
