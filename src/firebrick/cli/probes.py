"""The runtime probes that fit this machine's settings, for the doctor."""

from collections.abc import Iterable
from functools import partial

from firebrick.config import Config
from firebrick.doctor.doctor import RuntimeProbe, find_firecracker, find_oci_runtime, find_runsc
from firebrick.doctor.result import ProbeResult, ProbeStatus
from firebrick.doctor.runtime_probes import probe_container, probe_gvisor, probe_microvms, probe_no_firecracker

RUNSC_MEND = (("firebrick", "up"),)
OCI_MEND = (("apt-get", "install", "--yes", "--no-install-recommends", "runc"),)


def runtime_probes(config: Config) -> Iterable[RuntimeProbe]:
    """One probe per runtime; a missing program is told as such, with the command that brings it."""
    runsc, oci, tools = find_runsc(config), find_oci_runtime(config), find_firecracker(config)
    yield (
        partial(probe_gvisor, runsc, patience=config.patience)
        if runsc
        else partial(_absent, "gvisor", "no runsc here; `firebrick up` installs it", RUNSC_MEND)
    )
    yield (
        partial(probe_container, oci, patience=config.patience)
        if oci
        else partial(_absent, "container", "neither runc nor crun", OCI_MEND)
    )
    yield partial(probe_microvms, config, tools) if tools else probe_no_firecracker


async def _absent(name: str, summary: str, mend: tuple[tuple[str, ...], ...]) -> ProbeResult:
    return ProbeResult(name=name, status=ProbeStatus.ABSENT, summary=summary, mend=mend)
