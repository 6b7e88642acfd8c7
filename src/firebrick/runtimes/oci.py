"""The OCI bundle of a machine: what gvisor and container have in common. Pure but for `write_bundle`."""

import json
import re
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
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
)
"""What root inside may do to its own sandbox: enough for apt, sudo, su, ping and strace."""

NAMESPACES = ("pid", "ipc", "uts", "mount")
OPEN_FILES_COUNT = 65_536
_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")

Json = dict[str, Any]


def oci_config(spec: MachineSpec, *, mounts: list[Json], linux: Json, most_open_files_count: int | None = None) -> Json:
    """config.json of one machine. `mounts` go before the agent's and the extra files'; `linux` is merged in.

    `most_open_files_count` is the host's own limit where it binds the guest; None: it does not.
    """
    open_files_count = min(OPEN_FILES_COUNT, most_open_files_count or OPEN_FILES_COUNT)
    if not _HOSTNAME.match(spec.hostname):
        raise ValueError(f"not a host name: {spec.hostname!r}")
    extra = [_read_only_bind(AGENT_MOUNT, spec.agent_dir)]
    extra += [_read_only_bind(inside, source) for inside, source in sorted(spec.files.items())]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(spec.argv),
            "env": [f"{key}={value}" for key, value in spec.env.items()],
            "cwd": "/",
            "capabilities": {
                kind: list(CAPABILITIES) for kind in ("bounding", "effective", "inheritable", "permitted")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": open_files_count, "soft": open_files_count}],
            # sudo and su are setuid programs, and E2B's base has passwordless sudo: with no_new_privs set they
            # could gain nothing. What they gain here is at most the capabilities above, inside.
            "noNewPrivileges": False,
        },
        "root": {"path": str(spec.rootfs), "readonly": False},
        "hostname": spec.hostname,
        "mounts": mounts + extra,
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES] + [{"type": "network", "path": str(spec.netns)}]
        }
        | linux,
    }


def write_bundle(directory: Path, config: Json) -> Path:
    """Write it and return the bundle's path. Raises OSError."""
    bundle = directory / "bundle"
    bundle.mkdir(mode=0o711, exist_ok=True)
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def bind_mount(inside: str, source: Path, *options: str) -> Json:
    return {"destination": inside, "type": "bind", "source": str(source), "options": ["bind", *options]}


def _read_only_bind(inside: str, source: Path) -> Json:
    return bind_mount(inside, source, "ro", "nosuid", "nodev")
