"""Fill a jail before its monitor starts, and read what is kept beside it. Functions block: call them from a thread."""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from firebrick.linux.mount import bind
from firebrick.linux.netns import call_inside
from firebrick.linux.nft import NftFailed
from firebrick.linux.tap import link_settings, put_tap_before
from firebrick.runtimes.base import MachineSpec
from firebrick.runtimes.firecracker.memory import MOST_FACTS_BYTES, Started, started_from_json, started_to_json
from firebrick.runtimes.firecracker.plan import (
    CONFIG,
    DISK,
    MEMORY,
    REPORT,
    REPORT_BYTES,
    SPEC,
    TAP,
    Bound,
    Jail,
    Network,
    Report,
    Tools,
    bound_files,
    jailer_argv,
    machine_config,
    parse_report,
    spec_archive,
)
from firebrick.runtimes.firecracker.saving import SavePlace, give_agent, keep_base
from firebrick.runtimes.machines import StartPlan

_LINK = "eth0"


def fill_jail(tools: Tools, jail: Jail, spec: MachineSpec, *, agent: Path, started: Started) -> StartPlan:
    """Make all that a monitor needs; the jailer does the rest. In a thread of its own: it enters the machine's network.

    Args:
        agent: the guest agent's drive.
        started: as it is to be kept, but for the network, which is read here.

    Raises: OSError, ValueError. Effects: the jail, which whoever destroys the machine removes.
    """
    assert spec.image is not None
    assert spec.disk_file is not None
    disk = spec.disk_file.stat()
    argv = jailer_argv(
        tools,
        jail,
        user_id=spec.user_id,
        netns=spec.netns,
        largest_file_bytes=max(disk.st_size, spec.limits.memory_mib << 20),
        is_configured=not started.is_restored,
    )
    jail.top.mkdir(mode=0o711, parents=True, exist_ok=True)
    _check_mount(jail.top)
    jail.root.mkdir(mode=0o700, parents=True)
    SavePlace(directory=jail.save_place).make()
    give_agent(agent, jail.agent)
    if started.tracks and spec.memory is not None:
        keep_base(spec.memory / MEMORY, jail.base)
    elif started.tracks:
        jail.base.touch()
    if stat.S_ISBLK(disk.st_mode):
        # A node of its own: whose the host's is, others decide.
        os.mknod(jail.root / DISK, stat.S_IFBLK | 0o600, disk.st_rdev)
        os.chown(jail.root / DISK, spec.user_id, spec.user_id)
    else:
        os.chown(spec.disk_file, spec.user_id, spec.user_id)
    network = _network(spec.netns, spec.user_id)
    if started.is_restored and network != started.network:
        raise ValueError(f"its place in the network is {network}, and was {started.network} when it was saved")
    jail.started.write_text(started_to_json(replace(started, network=network)))
    if not started.is_restored:
        config = machine_config(
            spec.limits,
            network=network,
            rates=started.rates,
            tracks=started.tracks,
            is_huge=started.is_huge,
        )
        _write(jail.root / CONFIG, json.dumps(config).encode(), spec)
    extra = {inside: source.read_bytes() for inside, source in spec.files.items()}
    _write(jail.root / SPEC, spec_archive(spec, network, extra), spec)
    _write(jail.root / REPORT, bytes(REPORT_BYTES), spec)
    files = bound_files(tools, jail, image=spec.image, disk=spec.disk_file, save=spec.memory)
    return StartPlan(argv=argv, pid_file=jail.pid_file, joins_cgroup=True, mounts=_binding(jail.root, files))


def read_started(jail: Jail) -> Started:
    """Raises OSError, ValueError: it was started by an earlier version of ours."""
    with jail.started.open() as file:
        return started_from_json(file.read(MOST_FACTS_BYTES))


def read_report(jail: Jail) -> Report | None:
    """What the guest said at its end; None: nothing. Raises OSError."""
    try:
        # The jail's root is the monitor's to write: no link is followed out of it.
        descriptor = os.open(jail.root / REPORT, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return parse_report(os.read(descriptor, REPORT_BYTES))
    finally:
        os.close(descriptor)


def _check_mount(jails: Path) -> None:
    """The jailer puts device files and the monitor's program there, and nobody would say why they do not work."""
    flags = os.statvfs(jails).f_flag
    for flag, option in ((os.ST_NODEV, "nodev"), (os.ST_NOEXEC, "noexec")):
        if flags & flag:
            raise OSError(
                f"{jails} lies on a filesystem mounted {option}, where no monitor starts: mount it without, or set "
                "data_dir to another one"
            )


def _network(netns: Path, user_id: int) -> Network | None:
    """Put a tap before the namespace's link and tell how that is set; None where there is none. Raises OSError."""

    def join() -> Network | None:
        found = link_settings(_LINK)
        if found is None:
            return None
        try:
            put_tap_before(_LINK, TAP, user_id=user_id)
        except NftFailed as exc:
            raise OSError(f"the tap cannot be joined to {_LINK}: {exc}") from exc
        return Network(mac=found.mac, address=found.address, gateway=found.gateway, mtu_bytes=found.mtu_bytes)

    return call_inside(netns, join)


def _binding(root: Path, files: tuple[Bound, ...]) -> Callable[[], None]:
    """Called in the launcher's own mount namespace; the jailer takes these mounts along into the jail."""

    def bind_all() -> None:
        for file in files:
            place = root / file.name
            if place.is_block_device():
                continue
            if file.is_directory:
                place.mkdir(mode=0o700)
            else:
                place.touch(mode=0o600)
            bind(file.source, place, read_only=file.read_only)

    return bind_all


def _write(path: Path, data: bytes, spec: MachineSpec) -> None:
    """For the monitor's user alone: the agent's token is in one of these."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(descriptor, spec.user_id, spec.user_id)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
    finally:
        os.close(descriptor)
