"""`firebrick up`: from whatever this machine is to a sandbox that has run.

    examine → install what is missing → tools and base template → processes → a first sandbox → summary

Every stage finds what an earlier call made, so a second `up` only looks.
"""

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Annotated

import httpx
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from firebrick.builder.agent_image import build_agent_image
from firebrick.builder.base_template import build_base_template, find_base_template
from firebrick.builder.firecracker_tools import install_firecracker
from firebrick.builder.runsc_tool import install_runsc
from firebrick.cli.console import err, fail, out, reports_errors
from firebrick.cli.instance import kill_all
from firebrick.cli.probes import runtime_probes
from firebrick.clock import SystemClock
from firebrick.config import Config, load_config
from firebrick.doctor.doctor import Report, examine, find_firecracker, find_runsc
from firebrick.doctor.mend import mend
from firebrick.doctor.names import probe_names
from firebrick.doctor.packages import missing_packages
from firebrick.doctor.rendering import show_report
from firebrick.doctor.result import ProbeStatus
from firebrick.model.errors import FirebrickError, Unavailable
from firebrick.model.machine import RuntimeName
from firebrick.supervisor import lifecycle
from firebrick.supervisor.roles import SUPERVISOR, running

FIRST_COMMAND = "uname -sr && id -un && python3 -c 'print(6*7)'"
FIRST_SANDBOX_S, CHECK_TLS_S = 60.0, 5.0
TLS_PORT = 3443
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@reports_errors
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when all is ready.")] = False,
    runtime: Annotated[str | None, typer.Option(help="auto, firecracker, gvisor, container or sim.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
    api_port: Annotated[int | None, typer.Option(help="Port of the API.")] = None,
    edge_port: Annotated[int | None, typer.Option(help="Port of the edge.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help=f"TLS and HTTP/2, on {TLS_PORT} unless tls_port is set.")] = False,
) -> None:
    """Set this machine up, start everything, run a first sandbox, and say how to reach it."""
    began = perf_counter()
    config = load_config(data_dir=data_dir, runtime=runtime, api_port=api_port, edge_port=edge_port)
    if tls and not config.tls_port:
        config = load_config(**asdict(config) | {"tls_port": TLS_PORT})
    was_running = running(config, SUPERVISOR) is not None
    chosen = asyncio.run(prepare(config))
    asyncio.run(lifecycle.start(config, SystemClock()))
    if config.tls_port:
        check_tls(config)
    shown = first_sandbox(config) if config.runtime != RuntimeName.SIM else "simulated machines run no commands"
    summary(config, chosen, shown, perf_counter() - began)
    if not detach and not was_running:
        stay(config)


async def prepare(config: Config) -> RuntimeName:
    """Everything that must be on the machine before a process of ours starts. Returns the runtime to use."""
    lifecycle.ensure_api_key(config)
    if config.runtime == RuntimeName.SIM:
        return RuntimeName.SIM
    cached = _cached_verdict(config)
    if cached is not None and find_base_template(config) is not None:
        await build_agent_image(config.tools_dir / "agent", mirror=None)
        return cached
    report = await examine(config, runtime_probes=runtime_probes(config))
    if missing_packages(report.results):
        report = await _install(config, report)
    with stages() as stage:
        if find_runsc(config) is None and config.runtime in ("auto", RuntimeName.GVISOR):
            await _install_runsc(config, stage("gVisor's runsc"))
            report = await examine(config, runtime_probes=runtime_probes(config))
        if find_firecracker(config) is None and config.runtime == RuntimeName.FIRECRACKER:
            tell = stage("Firecracker")
            await install_firecracker(config.firecracker_dir, path=None, mirror=None, tell=tell)
            tell("ready", 1.0)
            report = await examine(config, runtime_probes=runtime_probes(config))
        if report.runtime is None or not report.is_able:
            show_report(report, err)
            fail("This machine cannot run sandboxes yet; see above.")
        tell = stage("guest agent")
        await build_agent_image(config.tools_dir / "agent", mirror=None)
        tell("ready", 1.0)
        tell = stage("base template")
        await build_base_template(config, progress=tell)
        tell("ready", 1.0)
    _save_verdict(config, report)
    return report.runtime


async def _install(config: Config, report: Report) -> Report:
    if os.geteuid() != 0:
        commands = await mend(report, run_them=False)
        show_report(report, err)
        fail("Some packages are missing. Run, as root:\n  " + "\n  ".join(commands))
    names = ", ".join(missing_packages(report.results))
    out.print(f"Installing {names} …", markup=False, soft_wrap=True)
    await mend(report, run_them=True)
    return await examine(config, runtime_probes=runtime_probes(config))


async def _install_runsc(config: Config, tell: Callable[[str, float], None]) -> None:
    """Without gVisor there may still be containers; so its absence is told, and fatal only where it was asked for."""
    try:
        await install_runsc(config.tools_dir / "runsc", mirror=None)
        tell("ready", 1.0)
    except FirebrickError as exc:
        if config.runtime == RuntimeName.GVISOR:
            raise
        tell("not to be had", 1.0)
        err.print(f"firebrick: {exc.message}", markup=False, soft_wrap=True)


@contextmanager
def stages() -> Iterator[Callable[[str], Callable[[str, float], None]]]:
    """A bar per stage: `tell = stage(name)`, then `tell(what, part)` with `part` from 0 to 1."""
    columns = (TextColumn("{task.description:<16}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[what]}"), console=out, disable=not out.is_terminal) as bars:

        def stage(name: str) -> Callable[[str, float], None]:
            task = bars.add_task(name, total=1.0, what="")
            if not out.is_terminal:
                out.print(f"{name} …")
            return lambda what, part: bars.update(task, completed=part, what=what)

        yield stage


def first_sandbox(config: Config) -> str:
    """Run a command in a new sandbox through the official SDK, as a user will. Returns what it showed."""
    # Imported here: the SDK takes most of a second, and `--help` does not need it.
    from e2b import Sandbox

    target = lifecycle.credentials(config)
    if target is None:
        fail("The API key of this instance is missing.")
    options = {"api_key": target.api_key, "api_url": target.api_url, "sandbox_url": target.sandbox_url}
    began = perf_counter()
    wait_s = config.patient_s(FIRST_SANDBOX_S)
    with Sandbox.create(timeout=int(wait_s), request_timeout=wait_s, **options) as box:  # type: ignore[arg-type]
        created = perf_counter()
        printed = box.commands.run(FIRST_COMMAND, timeout=wait_s, request_timeout=wait_s).stdout.split("\n")
        done = perf_counter()
    if printed[2] != "42":
        fail(f"The first sandbox answered strangely: {printed!r}")
    return (
        f"created in {(created - began) * 1000:.0f} ms, first command in {(done - created) * 1000:.0f} ms "
        f"({printed[0]}, user {printed[1]})"
    )


def check_tls(config: Config) -> None:
    """Ask the API for its health by its own name, trusting the local authority: as a client of E2B will.

    Raises: Unavailable — says which part does not work, and what mends it.
    """
    target = lifecycle.credentials(config)
    assert target is not None
    assert target.files is not None
    bundle = target.files.bundle
    context = ssl.create_default_context(cafile=str(bundle) if bundle else None)
    timeout_s = config.patient_s(CHECK_TLS_S)
    try:
        httpx.get(
            f"https://api.{target.domain}/health", verify=context, timeout=timeout_s, trust_env=False
        ).raise_for_status()
    except httpx.HTTPError as exc:
        raise Unavailable(
            f"The edge cannot be reached at https://api.{target.domain}: {exc}. Was the instance up without --tls? "
            "Then `firebrick down` first. Does the name lead here? `firebrick doctor` tells.",
        ) from exc


def summary(config: Config, runtime: RuntimeName, first: str, took_s: float) -> None:
    target = lifecycle.credentials(config)
    if target is None:
        return
    out.print(f"\nFirebrick is up after {took_s:.1f} s, on {runtime} ({runtime.isolation}).", style="bold")
    out.print(f"  API            {target.api_url}\n  edge           {target.sandbox_url}", markup=False)
    out.print(f"  first sandbox  {first}\n  data           {config.data_dir}", markup=False, soft_wrap=True)
    out.print("\nPoint E2B's clients here:\n", markup=False)
    if target.domain:
        print("unset E2B_API_URL E2B_SANDBOX_URL")
    for name, value in target.as_env().items():
        print(f"export {name}={value}")


def stay(config: Config) -> None:
    """Keep the terminal until Ctrl-C or SIGTERM, then take everything down."""
    out.print("\nCtrl-C ends every sandbox and stops. `firebrick up --detach` returns instead.", markup=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while running(config, SUPERVISOR) is not None:
            signal.sigtimedwait([signal.SIGCHLD], 1.0)
    except KeyboardInterrupt:
        out.print("\nStopping …")
        kill_all(config)
        asyncio.run(lifecycle.stop(config))
        sys.exit(0)
    fail("The supervisor has ended; `firebrick up` starts it again.")


def _cached_verdict(config: Config) -> RuntimeName | None:
    """What an earlier `up` proved, while this boot lasts and the wish is the same."""
    try:
        saved = json.loads(lifecycle.runtimes_file(config).read_text())
        if saved["boot_id"] != BOOT_ID.read_text().strip() or saved["wanted"] != config.runtime:
            return None
        if config.tls_port and probe_names(config).status is not ProbeStatus.OK:
            return None
        return RuntimeName(saved["runtime"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save_verdict(config: Config, report: Report) -> None:
    path = lifecycle.runtimes_file(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(
        json.dumps(
            {
                "runtimes": list(report.runtimes),
                "runtime": report.runtime,
                "wanted": config.runtime,
                "boot_id": BOOT_ID.read_text().strip(),
            }
        )
    )
    fresh.rename(path)
