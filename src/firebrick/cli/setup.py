"""`firebrick setup`: get what a runtime needs that is not a package of this machine."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from firebrick.builder.firecracker_tools import install_firecracker
from firebrick.cli.console import err, out, reports_errors
from firebrick.cli.up import stages
from firebrick.config import load_config
from firebrick.doctor.doctor import Report, guest_boots
from firebrick.doctor.host_reading import read_host
from firebrick.doctor.rendering import show_report
from firebrick.doctor.result import ProbeStatus
from firebrick.doctor.runtime_probes import probe_firecracker
from firebrick.doctor.virtualisation import virtualisation_finding

app = typer.Typer(help="Get what a runtime needs.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Without it a single command would be the group itself."""


@app.command("firecracker")
@reports_errors
def firecracker(
    path: Annotated[
        Path | None,
        typer.Option(
            "--path",
            exists=True,
            file_okay=False,
            help="Take firecracker and jailer (and vmlinux, if it is there) from here.",
        ),
    ] = None,
    release: Annotated[
        str | None, typer.Option(help="A URL of the release's archive; else upstream's. The checksums stay.")
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="A Debian mirror; else this machine's own.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
) -> None:
    """Get Firecracker, a guest kernel and our initramfs, and boot a guest to prove that KVM works here."""
    config = load_config(data_dir=data_dir)
    with stages() as stage:
        tell = stage("Firecracker")
        tools = asyncio.run(
            install_firecracker(config.firecracker_dir, path=path, mirror=mirror, tell=tell, release=release)
        )
        tell("ready", 1.0)
    result = asyncio.run(probe_firecracker(tools, patience=config.patience))
    is_ok = result.status is ProbeStatus.OK
    why = virtualisation_finding(read_host(config), boots=guest_boots((result,), is_root=os.geteuid() == 0))
    show_report(Report(results=(result, why), wanted=config.runtime), out if is_ok else err)
    if not is_ok:
        raise typer.Exit(1)
