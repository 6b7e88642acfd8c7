"""Probes of the machine: kernel, rights, cgroups, limits, memory, disk, ports. They read; they change nothing."""

import os
import re
import resource
import shutil
import socket
from pathlib import Path

from firebrick.config import Config
from firebrick.doctor import machine_facts as facts
from firebrick.doctor.result import ProbeResult, ProbeStatus

# `python -m firebrick.main.<role>`: a checkout's path may hold our name too.
_OUR_ROLE = re.compile(r"\bfirebrick\.main\.")

_OK, _WARN, _FAIL = ProbeStatus.OK, ProbeStatus.WARN, ProbeStatus.FAIL

# pidfd_open (5.3) is the oldest kernel feature that everything rests on; idmapped lower layers need 5.19.
_OLDEST_KERNEL = (5, 4)
_GOOD_KERNEL = (5, 19)
# Template 0.4 GiB, building it 1.2 GiB more, some sandboxes.
_LEAST_DISK_MIB = 2048
_GOOD_DISK_MIB = 10240
_LEAST_INODES = 20_000
_GOOD_MEMORY_MIB = 1024
_GOOD_FILE_COUNT = 4096
_GOOD_INOTIFY_COUNT = 128


def probe_kernel() -> ProbeResult:
    release = os.uname().release
    version = facts.kernel_version(release)
    if version < _OLDEST_KERNEL:
        why = "Firebrick needs Linux 5.4 or newer."
        return ProbeResult(name="kernel", status=_FAIL, summary=release, why=why, required=True)
    if version < _GOOD_KERNEL:
        why = "Before 5.19 layers cannot be idmapped: the container runtime does not work; gvisor does."
        return ProbeResult(name="kernel", status=_WARN, summary=release, why=why, required=True)
    return ProbeResult(name="kernel", status=_OK, summary=release, required=True)


def probe_rights() -> ProbeResult:
    missing = facts.missing_capabilities(Path("/proc/self/status").read_text())
    if os.geteuid() == 0 and not missing:
        return ProbeResult(name="rights", status=_OK, summary="root, with all capabilities needed", required=True)
    if os.geteuid() != 0:
        why = "The node agent makes mounts, namespaces and cgroups; only root may. Runtime probes need it too."
        summary = f"user {os.geteuid()}, not root"
        return ProbeResult(
            name="rights", status=_FAIL, summary=summary, why=why, mend=(("sudo", "firebrick", "up"),), required=True
        )
    why = "This root is confined, as in a container: run Firebrick on the machine itself, or grant these."
    return ProbeResult(name="rights", status=_FAIL, summary=f"without {', '.join(missing)}", why=why, required=True)


def probe_cgroups() -> ProbeResult:
    mountinfo = Path("/proc/self/mountinfo").read_text()
    found = facts.cgroup_facts(mountinfo, _v2_controllers())
    if found.missing:
        why = "Limits of CPU, memory and processes cannot be held without these controllers."
        summary = f"{found.layout}, without {', '.join(found.missing)}"
        mend: tuple[tuple[str, ...], ...] = ()
        if found.layout is facts.CgroupLayout.NONE:
            mend = (("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"),)
        return ProbeResult(name="cgroups", status=_FAIL, summary=summary, why=why, mend=mend, required=True)
    summary = f"{found.layout} with {', '.join(facts.NEEDED_CONTROLLERS)}"
    return ProbeResult(name="cgroups", status=_OK, summary=summary, required=True)


def probe_seccomp() -> ProbeResult:
    if Path("/proc/sys/kernel/seccomp/actions_avail").exists():
        return ProbeResult(name="seccomp", status=_OK, summary="filters work")
    why = "This kernel has no seccomp filters; the container runtime does not start without them."
    return ProbeResult(name="seccomp", status=_WARN, summary="missing", why=why)


def probe_disk(config: Config) -> ProbeResult:
    place = _existing_parent(config.data_dir)
    free_mib = shutil.disk_usage(place).free >> 20
    inodes = os.statvfs(place)
    summary = f"{free_mib // 1024} GiB free in {place}"
    # Filesystems without a fixed number of inodes (btrfs) say 0 of 0.
    if inodes.f_files and inodes.f_favail < _LEAST_INODES:
        summary = f"{inodes.f_favail} inodes free in {place}"
        why = "Disks and records of sandboxes are files; delete small files or set data_dir to another disk."
        return ProbeResult(name="disk", status=_FAIL, summary=summary, why=why, required=True)
    if free_mib < _LEAST_DISK_MIB:
        why = f"At least {_LEAST_DISK_MIB} MiB are needed. Free some, or set FIREBRICK_DATA_DIR to a larger disk."
        return ProbeResult(name="disk", status=_FAIL, summary=summary, why=why, required=True)
    if free_mib < _GOOD_DISK_MIB:
        why = "Each sandbox may write up to default_disk_mib; a few will fill this disk."
        return ProbeResult(name="disk", status=_WARN, summary=summary, why=why)
    return ProbeResult(name="disk", status=_OK, summary=summary)


def probe_memory() -> ProbeResult:
    memory = facts.meminfo_mib(Path("/proc/meminfo").read_text())
    summary = f"{memory.get('MemAvailable', 0)} of {memory.get('MemTotal', 0)} MiB available"
    if memory.get("MemAvailable", 0) < _GOOD_MEMORY_MIB:
        why = "A sandbox of the base template may use 1 GiB."
        return ProbeResult(name="memory", status=_WARN, summary=summary, why=why)
    return ProbeResult(name="memory", status=_OK, summary=summary)


def probe_open_files() -> ProbeResult:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    summary = "no limit" if hard == resource.RLIM_INFINITY else f"{hard} descriptors a process"
    if hard != resource.RLIM_INFINITY and hard < _GOOD_FILE_COUNT:
        why = "The edge holds two connections per request; raise LimitNOFILE of the service, or `ulimit -Hn`."
        return ProbeResult(name="open files", status=_WARN, summary=summary, why=why)
    return ProbeResult(name="open files", status=_OK, summary=summary)


def probe_inotify() -> ProbeResult:
    key = "fs.inotify.max_user_instances"
    path = Path("/proc/sys") / key.replace(".", "/")
    count = int(path.read_text()) if path.exists() else 0
    if count < _GOOD_INOTIFY_COUNT:
        why = "Directory watches inside sandboxes share this number."
        mend = (("sysctl", "-w", f"{key}=1024"),)
        return ProbeResult(name="inotify", status=_WARN, summary=f"{count} instances", why=why, mend=mend)
    return ProbeResult(name="inotify", status=_OK, summary=f"{count} instances")


def probe_port(config: Config, setting: str) -> ProbeResult:
    """Free, or held by an instance of ours: both are fine."""
    port: int = getattr(config, setting)
    name = setting.replace("_", " ")
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((config.host, port))
            return ProbeResult(name=name, status=_OK, summary=f"{port} is free", required=True)
        except OSError as exc:
            reason = exc.strerror
    holder = _holder(port)
    if _OUR_ROLE.search(holder):
        return ProbeResult(name=name, status=_OK, summary=f"{port} is held by Firebrick", required=True)
    summary = f"{port} on {config.host}: {reason}" + (f", held by {holder}" if holder else "")
    why = f"Stop that program, or choose another port with FIREBRICK_{setting.upper()}."
    return ProbeResult(name=name, status=_FAIL, summary=summary, why=why, required=True)


def _v2_controllers() -> str:
    for place in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        path = Path(place) / "cgroup.controllers"
        if path.exists():
            return path.read_text()
    return ""


def _holder(port: int) -> str:
    """The command that listens on `port`, as far as we may see it."""
    inodes: frozenset[str] = frozenset()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            inodes |= facts.listener_inodes(Path(table).read_text(), port)
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(item) in wanted for item in (process / "fd").iterdir()):
                return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # ended meanwhile, or not ours to read
    return ""


def _existing_parent(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())
