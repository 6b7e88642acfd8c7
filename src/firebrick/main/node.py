"""Process entry: the node agent of one machine. With `--end-all`, its broom: the agent must be stopped then."""

import asyncio
import os
import resource
import signal
import sys

from firebrick import log
from firebrick.config import Config, load_config
from firebrick.main.node_drivers import build_drivers, build_settings
from firebrick.model.errors import FirebrickError
from firebrick.node.identity import sole_agent
from firebrick.node.records import MachineRecords
from firebrick.node.recovery import end_everything
from firebrick.node.service import NodeServer
from firebrick.node.supervisor import NodeAgent


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


def raise_file_limit() -> None:
    """Every machine costs a descriptor for its console and at times one for its agent."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
            asyncio.run(end_all(config) if "--end-all" in sys.argv[1:] else serve(config))
    except FirebrickError as exc:
        log.get_log("main").error("node.refused", message=exc.message, detail=exc.detail)
        print(exc.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
