"""Process entry: the node agent of one machine. With `--end-all`, its broom: the agent must be stopped then. With
`--lose-boot` it does to this instance what a reboot of the host does, for `firebrick drill`."""

import asyncio
import errno
import os
import resource
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from firebrick import log
from firebrick.clock import Clock, SystemClock
from firebrick.config import Config, load_config
from firebrick.linux.mount import mounts_below, unmount
from firebrick.main.node_drivers import build_drivers, build_settings
from firebrick.model.errors import FirebrickError
from firebrick.node.identity import sole_agent
from firebrick.node.records import MachineRecords
from firebrick.node.recovery import end_everything
from firebrick.node.service import NodeServer
from firebrick.node.supervisor import NodeAgent
from firebrick.rootfs.upper import unmount_patiently

UNMOUNT_TIMEOUT_S = 10.0


async def serve(config: Config) -> None:
    """Run until SIGTERM or SIGINT. Sandboxes live on, and the next process adopts them."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    drivers = build_drivers(config)
    settings = await build_settings(config, drivers)
    agent = NodeAgent(drivers, settings, MachineRecords(settings.machines_dir))
    server = NodeServer(agent, config.node_socket)
    try:
        await agent.open()
        await server.start()
        log.get_log("main").info("node.ready", node_id=settings.node_id, runtimes=settings.offered)
        await stopping.wait()
    finally:
        # NOTE: the agent first: it ends the streams that the server would wait for.
        await agent.close()
        await server.stop()


async def end_all(config: Config) -> None:
    await end_everything(build_drivers(config), MachineRecords(config.node_dir / "machines"))


async def lose_boot(config: Config) -> None:
    """End the machines, network and mounts of this instance, found by its own names, and touch no file and no other
    process: what is on the disk afterwards is what a reboot finds. All roles must be stopped.

    Raises: FirebrickError, OSError: something of it stays.
    """
    drivers = build_drivers(config)
    with notes_kept(tuple(config.node_dir / name for name in drivers.runtimes)):
        for runtime in drivers.runtimes.values():
            for machine_id in await runtime.recover():
                await runtime.destroy(machine_id)
            await runtime.close()
    await drivers.slots.destroy_all()
    await unmount_below(config.node_dir, SystemClock())


async def unmount_below(directory: Path, clock: Clock) -> None:
    """Raises OSError: something stays mounted."""
    deadline = clock.monotonic_s() + UNMOUNT_TIMEOUT_S
    while mounts := mounts_below(directory):
        try:
            for entry in reversed(mounts):
                unmount_patiently(entry.target)
        except OSError as exc:
            # Whoever copies the table of mounts, as every runtime does to start a machine, holds them for a while.
            if exc.errno != errno.EBUSY:
                raise
            if clock.monotonic_s() < deadline:
                continue
            left = mounts_below(directory)
            if len(left) > 1:
                raise
            # Nothing is mounted below it any more: no disk is held with it, only its name.
            unmount(left[0].target, detach=True)


@contextmanager
def notes_kept(directories: tuple[Path, ...]) -> Iterator[None]:
    """Put back what the runtimes had written of their machines: a reboot ends these in no order, and leaves that."""
    with TemporaryDirectory() as aside:
        for directory in directories:
            if directory.is_dir():
                shutil.copytree(directory, Path(aside, directory.name), symlinks=True, ignore=_special_files)
        yield
        for directory in directories:
            if (saved := Path(aside, directory.name)).is_dir():
                shutil.copytree(saved, directory, symlinks=True, dirs_exist_ok=True)


def _special_files(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if (mode := os.lstat(Path(directory, name)).st_mode) and not (
        stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
    )]  # fmt: skip


def raise_file_limit() -> None:
    """Every machine costs a descriptor for its console and at times one for its agent."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


OTHER_WORK: Mapping[str, Callable[[Config], Coroutine[Any, Any, None]]] = {
    "--end-all": end_all, "--lose-boot": lose_boot,
}  # fmt: skip


def main() -> int:
    # Runtimes enter our directories as other users; what is secret sets its own mode.
    os.umask(0o022)
    config = load_config()
    log.configure(config.log_level, "node")
    raise_file_limit()
    config.node_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    try:
        with sole_agent(config.node_dir):
            # NOTE: not uvloop. It starts commands by fork, and gRPC's fork handlers (1.85) crash 1 child in 15
            # before its exec; asyncio starts them by vfork, which runs no handler and copies no page table.
            work = next((work for flag, work in OTHER_WORK.items() if flag in sys.argv[1:]), serve)
            asyncio.run(work(config))
    except FirebrickError as exc:
        log.get_log("main").error("node.refused", message=exc.message, detail=exc.detail)
        print(exc.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
