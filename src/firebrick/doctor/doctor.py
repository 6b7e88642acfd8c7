"""Examine the machine: run every probe at the same time, and choose the runtime that is proven strongest."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firebrick.config import Config
from firebrick.doctor import feature_probes, machine_probes
from firebrick.doctor.host_findings import host_findings
from firebrick.doctor.host_reading import read_host
from firebrick.doctor.names import probe_names
from firebrick.doctor.packages import probe_packages
from firebrick.doctor.result import ProbeResult, ProbeStatus
from firebrick.model.machine import RuntimeName
from firebrick.runtimes.firecracker.plan import Tools

RuntimeProbe = Callable[[], Awaitable[ProbeResult]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All results, in the order of the table, and what follows from them."""

    results: tuple[ProbeResult, ...]
    wanted: str

    @property
    def runtimes(self) -> tuple[RuntimeName, ...]:
        """Every runtime that works here, strongest first."""
        return working_runtimes(self.results)

    @property
    def runtime(self) -> RuntimeName | None:
        return choose_runtime(self.results, self.wanted)

    @property
    def is_able(self) -> bool:
        """Whether a sandbox can run here."""
        failed = any(result.required and result.status is ProbeStatus.FAIL for result in self.results)
        # The simulation needs nothing of the machine.
        return self.runtime is RuntimeName.SIM or (self.runtime is not None and not failed)

    @property
    def exit_status(self) -> int:
        return 0 if self.is_able else 1

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "able": self.is_able,
            "runtime": self.runtime,
            "runtimes": list(self.runtimes),
            "probes": [asdict(result) for result in self.results],
        }


def working_runtimes(results: Iterable[ProbeResult]) -> tuple[RuntimeName, ...]:
    """Every runtime whose probe is ok, strongest first."""
    names = {result.name for result in results if result.status is ProbeStatus.OK}
    return tuple(sorted((name for name in RuntimeName if name in names), key=lambda name: -name.strength))


def choose_runtime(results: Iterable[ProbeResult], wanted: str) -> RuntimeName | None:
    """The runtime to use: the strongest proven for `auto`, else the wanted one if proven; None: there is none."""
    if wanted == RuntimeName.SIM:
        return RuntimeName.SIM
    working = working_runtimes(results)
    if wanted == "auto":
        return next((name for name in working if name.strength > 0), None)
    return next((name for name in working if name == wanted), None)


def find_runsc(config: Config) -> Path | None:
    """The runsc to use: the setting, then the one that we installed, then PATH."""
    return _first_program(config.runsc_path, config.tools_dir / "runsc", "runsc")


def find_oci_runtime(config: Config) -> Path | None:
    """The runc or crun to use: the setting, then PATH, runc first."""
    return _first_program(config.oci_runtime_path, "runc", "crun")


def find_firecracker(config: Config) -> Tools | None:
    """What `firebrick setup firecracker` installed, if it is whole."""
    tools = Tools(directory=config.firecracker_dir)
    return tools if all(path.is_file() for path in tools.files) else None


async def examine(config: Config, *, runtime_probes: Iterable[RuntimeProbe]) -> Report:
    """Run every probe, all at once. Takes as long as the slowest: a few seconds."""
    probes: list[RuntimeProbe] = [
        lambda: asyncio.to_thread(machine_probes.probe_kernel),
        lambda: asyncio.to_thread(machine_probes.probe_rights),
        lambda: asyncio.to_thread(machine_probes.probe_cgroups),
        lambda: feature_probes.probe_rootfs(patience=config.patience),
        lambda: feature_probes.probe_network(patience=config.patience),
        lambda: asyncio.to_thread(feature_probes.probe_internet),
        feature_probes.probe_user_namespaces,
        lambda: asyncio.to_thread(machine_probes.probe_seccomp),
        *runtime_probes,
        lambda: asyncio.to_thread(machine_probes.probe_disk, config),
        lambda: asyncio.to_thread(machine_probes.probe_memory),
        lambda: asyncio.to_thread(machine_probes.probe_open_files),
        lambda: asyncio.to_thread(machine_probes.probe_inotify),
        lambda: asyncio.to_thread(machine_probes.probe_port, config, "api_port"),
        lambda: asyncio.to_thread(machine_probes.probe_port, config, "edge_port"),
        *([lambda: asyncio.to_thread(probe_names, config)] if config.tls_port else []),
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run(probe)) for probe in probes]
        reading = group.create_task(asyncio.to_thread(read_host, config))
    results = tuple(task.result() for task in tasks)
    findings = host_findings(reading.result(), boots=guest_boots(results, is_root=reading.result().is_root))
    return Report(results=(*results, *findings, *probe_packages(config)), wanted=config.runtime)


def guest_boots(results: Iterable[ProbeResult], *, is_root: bool) -> bool | None:
    """Whether the probe of microVMs booted a guest; None where it did not try."""
    statuses = {result.status for result in results if result.name == RuntimeName.FIRECRACKER}
    if not is_root or not statuses <= {ProbeStatus.OK, ProbeStatus.FAIL}:
        return None
    return ProbeStatus.OK in statuses if statuses else None


async def _run(probe: RuntimeProbe) -> ProbeResult:
    return await probe()


def _first_program(*candidates: str | Path) -> Path | None:
    for candidate in candidates:
        if candidate and (found := shutil.which(candidate)):
            return Path(found)
    return None
