"""What we need of the machine's packages, each with the command that installs it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from firebrick.config import Config
from firebrick.doctor.result import ProbeResult, ProbeStatus

APT_INSTALL = ("apt-get", "install", "--yes", "--no-install-recommends")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Any of `files` (a program's name, or a library's pattern) will do; `package` brings the first."""

    package: str
    files: tuple[str, ...]
    purpose: str
    required: bool = True


NEEDS = (
    Need(package="mmdebstrap", files=("mmdebstrap",), purpose="builds the base template"),
    Need(
        package="debian-archive-keyring",
        files=("/usr/share/keyrings/debian-archive-keyring.gpg",),
        purpose="proves that its packages are Debian's",
    ),
    Need(package="erofs-utils", files=("mkfs.erofs",), purpose="writes template images"),
    Need(package="e2fsprogs", files=("mkfs.ext4",), purpose="formats the disks of sandboxes"),
    Need(package="libnftables1", files=("libnftables.so.1",), purpose="is the firewall of sandboxes"),
    Need(package="iproute2", files=("ip",), purpose="shows and probes network namespaces"),
    Need(package="util-linux", files=("unshare",), purpose="makes namespaces"),
    Need(package="runc", files=("runc", "crun"), purpose="is the container runtime", required=False),
)


def probe_packages(config: Config) -> tuple[ProbeResult, ...]:
    """One result each."""
    return tuple(_probe(need, config) for need in NEEDS)


def missing_packages(results: tuple[ProbeResult, ...]) -> tuple[str, ...]:
    """What apt should install, from the mending commands of these results, in their order."""
    found: dict[str, None] = {}
    for result in results:
        for argv in result.mend:
            if argv[: len(APT_INSTALL)] == APT_INSTALL:
                found |= dict.fromkeys(argv[len(APT_INSTALL) :])
    return tuple(found)


def _probe(need: Need, config: Config) -> ProbeResult:
    name = f"package {need.package}"
    if need.package == "runc" and config.oci_runtime_path:
        files: tuple[str, ...] = (config.oci_runtime_path,)
    else:
        files = need.files
    found = next((path for file in files if (path := _find(file))), None)
    if found:
        return ProbeResult(name=name, status=ProbeStatus.OK, summary=found, required=need.required)
    status = ProbeStatus.FAIL if need.required else ProbeStatus.WARN
    return ProbeResult(
        name=name, status=status, summary="missing", why=f"It {need.purpose}.",
        mend=((*APT_INSTALL, need.package),), required=need.required,
    )  # fmt: skip


def _find(file: str) -> str | None:
    if file.startswith("/"):
        return file if Path(file).exists() else None
    if ".so." in file:
        places = ("/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib")
        return next((str(hit) for place in places for hit in Path("/").glob(f"{place[1:]}/{file}")), None)
    # sbin is not on every user's PATH.
    return shutil.which(file) or shutil.which(file, path="/usr/sbin:/sbin:/usr/local/sbin")
