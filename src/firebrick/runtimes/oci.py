"""The OCI bundle of a machine: what gvisor and container have in common. Pure but for `write_bundle`."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from firebrick.runtimes.base import AGENT_MOUNT, MachineSpec

CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""What root inside may do to its own sandbox: enough for apt, sudo, su and services."""

OPEN_FILES_COUNT = 65_536
SHARED_MEMORY_MIB = 64
"""Size of /dev/shm, as container engines have it."""

_NAMESPACES = ("pid", "ipc", "uts", "mount")
_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")

Json = dict[str, Any]


def oci_config(
    spec: MachineSpec,
    *,
    mounts: Iterable[Json],
    capabilities: Iterable[str] = CAPABILITIES,
    rlimits: Mapping[str, int],
    linux: Json,
) -> Json:
    """config.json of one machine. `mounts` go before the agent's and the extra files'; `linux` is merged in.

    Raises: ValueError for a host name that is none.
    """
    if not _HOSTNAME.match(spec.hostname):
        raise ValueError(f"not a host name: {spec.hostname!r}")
    inside = {AGENT_MOUNT: spec.agent_dir} | dict(sorted(spec.files.items()))
    read_only = [bind_mount(path, source, "ro", "nosuid", "nodev") for path, source in inside.items()]
    namespaces = [{"type": kind} for kind in _NAMESPACES] + [{"type": "network", "path": str(spec.netns)}]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(spec.argv),
            "env": [f"{key}={value}" for key, value in spec.env.items()],
            "cwd": "/",
            # Nothing inheritable: with it, a program could keep by its file what its user was never given.
            "capabilities": {kind: list(capabilities) for kind in ("bounding", "effective", "permitted")},
            # A core dump may go to a program of the host, fed with the guest's data.
            "rlimits": [
                {"type": name, "hard": value, "soft": value} for name, value in {"RLIMIT_CORE": 0, **rlimits}.items()
            ],
            # The first process stays without no_new_privs: sudo and su are setuid programs, E2B's base has
            # passwordless sudo, and with the bit set they could gain nothing. What they can gain here is at most
            # the capabilities above, inside; the bounding set and the user namespace (or the sentry) see to that.
            "noNewPrivileges": False,
            # When the whole host runs out of memory, a sandbox goes before anything of the host's.
            "oomScoreAdj": 500,
        },
        "root": {"path": str(spec.rootfs), "readonly": False},
        "hostname": spec.hostname,
        "mounts": [*mounts, *read_only],
        "linux": {"namespaces": namespaces} | linux,
    }


def write_bundle(directory: Path, config: Json) -> Path:
    """Write it and return the bundle's path. Raises OSError."""
    bundle = directory / "bundle"
    bundle.mkdir(mode=0o711, exist_ok=True)
    # Only for root: the environment holds the agent's token.
    descriptor = os.open(bundle / "config.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        json.dump(config, file)
    return bundle


def bind_mount(inside: str, source: Path, *options: str) -> Json:
    return {"destination": inside, "type": "bind", "source": str(source), "options": ["bind", *options]}
